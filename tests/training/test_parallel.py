import numpy as np

from nucseg_jax.training.parallel import Devices


def test_bytes_of_the_loader_become_floats_on_the_device():
    batch = {
        "image_u8": np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1),
        "mask": np.eye(16, dtype=bool)[None, ..., None],
        "valid": np.ones(1, bool),
        "index": np.zeros(1, np.int32),
    }
    devices = Devices()
    for compiled in (
        devices.compile_train_step(lambda state, batch: batch),
        devices.compile_eval_step(lambda variables, batch: batch),
    ):
        seen = compiled(np.zeros(1), batch)
        assert set(seen) == {"image", "mask", "valid"}
        assert seen["image"].dtype == seen["mask"].dtype == np.float32
        # XLA multiplies by the reciprocal: the last bit may differ.
        np.testing.assert_allclose(
            seen["image"], batch["image_u8"] / np.float32(255), rtol=1.2e-7
        )
        np.testing.assert_array_equal(seen["mask"], batch["mask"])

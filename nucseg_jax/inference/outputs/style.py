"""How the report looks: sober, by day, by night and on paper."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fff; --ink: #1d2329; --faint: #626c76; --line: #d8dde2;
  --accent: #2f6690; --shade: #f4f6f8; --bad: #a3261d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16191d; --ink: #e4e7ea; --faint: #9aa4ad; --line: #363d44;
    --accent: #7fb2d9; --shade: #1f242a; --bad: #f0897f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 68rem; padding: 2.5rem 1.5rem 4rem;
  background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
h1 { font-size: 1.7rem; font-weight: 600; line-height: 1.25; margin: 0; }
h2 {
  font-size: 1.05rem; font-weight: 600; margin: 2.5rem 0 .6rem;
  padding-bottom: .3rem; border-bottom: 1px solid var(--line);
}
p.note { color: var(--faint); margin: .3rem 0 .8rem; }
a { color: var(--accent); }
dl.totals { display: flex; flex-wrap: wrap; gap: 1rem 2.8rem; margin: 1.6rem 0 0; }
dl.totals dt { color: var(--faint); font-size: .85rem; }
dl.totals dd { margin: 0; font-size: 1.45rem; font-weight: 600; line-height: 1.3; }
dl.totals small { font-size: .85rem; font-weight: 400; color: var(--faint); }
.charts { display: flex; flex-wrap: wrap; gap: 1.5rem; }
figure { margin: 0; flex: 1 1 22rem; max-width: 32rem; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
figure.wide { max-width: none; margin-bottom: 1.5rem; }
.wide img { max-width: 100%; background: #fff; }
svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; }
th {
  text-align: left; font-weight: 600; font-size: .85rem; color: var(--faint);
  border-bottom: 1px solid var(--ink); padding: .3rem .8rem .3rem 0;
  vertical-align: bottom;
}
td {
  border-bottom: 1px solid var(--line); padding: .4rem .8rem .4rem 0;
  vertical-align: middle; overflow-wrap: anywhere;
}
.number { text-align: right; white-space: nowrap; }
.thumbnail { width: 7.5rem; }
.thumbnail img {
  display: block; max-width: 7rem; max-height: 5.5rem; border: 1px solid var(--line);
}
.images td:nth-child(2) { min-width: 11rem; }
td.files { font-size: .85rem; line-height: 1.7; }
td.files a { margin-right: .5rem; white-space: nowrap; }
table.settings { width: auto; font-size: .9rem; }
table.settings th { border-bottom: 1px solid var(--line); font-weight: 400; }
.failed h2, .failed td:first-child { color: var(--bad); }
.failed td:last-child { color: var(--ink); }
tr { break-inside: avoid; }
@media print {
  :root {
    --paper: #fff; --ink: #000; --faint: #444; --line: #bbb; --accent: #1f4e73;
    --bad: #8a1c14;
  }
  body { max-width: none; padding: 0; font-size: 9.5pt; }
  .files { display: none; }
  .thumbnail { width: 5.2rem; }
  .thumbnail img { max-width: 5rem; max-height: 3.6rem; }
  h2, figcaption { break-after: avoid; }
  figure { break-inside: avoid; }
  a { color: inherit; text-decoration: none; }
}
"""

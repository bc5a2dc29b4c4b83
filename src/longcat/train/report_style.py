"""The style sheet of report.html: light and dark, printable, no fonts from elsewhere."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b2129; --paper: #ffffff; --soft: #eef1f4;
  --line: #d5dae0; --ffn: #299fcd; --zero: #7d8490; --net: #d98a2e; --good: #098356;
  --bad: #d73337; }
@media (prefers-color-scheme: dark) { :root { --ink: #d6dbe3; --paper: #0e1218; --soft: #181e26;
  --line: #2c3540; } }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 760px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 24px; } h2 { font-size: 18px; margin: 36px 0 4px; } h3 { font-size: 14px; }
.note { margin: 0 0 8px; color: var(--zero); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 8px; }
.card { background: var(--soft); border-radius: 6px; padding: 10px 12px; }
.card b { display: block; font-size: 20px; } .card span { color: var(--zero); font-size: 13px; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font-size: 12px; }
svg .tick { fill: var(--zero); font-size: 11px; }
svg polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .axis { stroke: var(--zero); } svg .grid { stroke: var(--line); stroke-width: .6; }
svg .target { stroke: var(--ink); stroke-dasharray: 5 4; opacity: .7; }
.legend span { margin-right: 16px; font-size: 13px; }
.legend i { display: inline-block; width: 14px; height: 4px; margin-right: 6px;
  vertical-align: middle; }
table { border-collapse: collapse; margin: 8px 0; font-variant-numeric: tabular-nums; }
td, th { text-align: left; padding: 3px 14px 3px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
pre { background: var(--soft); padding: 12px; border-radius: 6px; overflow-x: auto;
  font: 13px/1.5 ui-monospace, monospace; white-space: pre-wrap; }
code { background: var(--soft); padding: 0 4px; border-radius: 3px; white-space: pre; }
.heat span { background: color-mix(in srgb, var(--ffn) calc(var(--s) * 80%), transparent);
  border-radius: 2px; }
details { margin: 6px 0; } summary { cursor: pointer; color: var(--zero); }
""".strip()

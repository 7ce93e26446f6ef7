"""The style sheet of a report's page: light, dark and print."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--bg:#f7f8fa;--card:#fff;--ink:#1b2430;--soft:#5b6675;--rule:#dde2e8;--grid:#e8ecf0;
--rate:#0b6bcb;--mesh:#0f8a5f;--plain:#7a5af0;--jpeg:#d9480f;--webp:#b7791f;--png:#8a94a3;
--good:#0f7a4d;--goodbg:#e3f6ec;--bad:#b42318;--badbg:#fdeceb;--none:#5b6675;--nonebg:#eceff3}
@media (prefers-color-scheme:dark){:root{--bg:#12161c;--card:#1a2029;--ink:#e7ebf0;--soft:#9aa6b5;--rule:#2f3845;
--grid:#262e39;--rate:#5aaeff;--mesh:#46cf99;--plain:#a996ff;--jpeg:#ff8a52;--webp:#e6b14e;--png:#93a0b0;
--good:#6fe0ad;--goodbg:#12322a;--bad:#ff9d94;--badbg:#3a1c1c;--none:#b7c1cd;--nonebg:#232b36}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,
"DejaVu Sans",sans-serif}
main{max-width:1000px;margin:0 auto;padding:28px 20px 40px}
h1{font-size:27px;line-height:1.25;margin:0 0 6px;overflow-wrap:anywhere}
h2{font-size:18px;margin:0 0 10px}
h3{font-size:14px;margin:18px 0 8px;font-weight:600}
section>h3:first-of-type{margin-top:0}
p{margin:0 0 8px}
code{font:12.5px/1.4 ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;background:var(--nonebg);
border-radius:5px;padding:2px 6px;overflow-wrap:anywhere}
.kicker{color:var(--soft);text-transform:uppercase;letter-spacing:.08em;font-size:11.5px;margin:0}
.recipe{margin:6px 0 18px}
.verdict{padding:12px 16px;border-radius:10px;font-size:16px;margin:0 0 16px}
.verdict.good{background:var(--goodbg);color:var(--good)}
.verdict.bad{background:var(--badbg);color:var(--bad)}
.verdict.none{background:var(--nonebg);color:var(--none)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(172px,1fr));gap:12px;margin:0 0 16px}
.card,section{background:var(--card);border:1px solid var(--rule);border-radius:12px}
.card{padding:12px 14px}
.card p{margin:0}
.what,.more{color:var(--soft);font-size:12.5px;font-weight:400}
.value{font-size:23px;font-weight:650;font-variant-numeric:tabular-nums;line-height:1.35}
section{padding:18px 20px;margin:0 0 16px;overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th{color:var(--soft);font-weight:500;text-align:left;font-size:12.5px}
th,td{padding:5px 10px 5px 0;border-bottom:1px solid var(--rule);vertical-align:top}
tbody tr:last-child td{border-bottom:0}
tr.group th{padding-top:14px;color:var(--ink);font-weight:600}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.i{color:var(--soft);font-size:12.5px;font-variant-numeric:tabular-nums;white-space:nowrap}
thead th[colspan="2"]{text-align:left;padding-left:28px}
.w{width:46%;padding-left:12px}
.amount{display:block;width:100%;height:9px;margin-top:6px}
.amount rect{fill:var(--rate);opacity:.75}
table.small{width:auto;min-width:300px}
.note{color:var(--soft);font-size:12.5px;margin:8px 0 0}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin:2px 0 10px;font-size:12.5px;color:var(--soft)}
.key{display:inline-flex;align-items:center;gap:5px}
.figure{display:block;width:100%;height:auto}
.figure text{font:11.5px system-ui,"Segoe UI",Roboto,Arial,"DejaVu Sans",sans-serif}
.grid{stroke:var(--grid);fill:none}
.axis{stroke:var(--rule);fill:none}
.tick,.name{fill:var(--soft)}
.label{paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round;fill:var(--c,var(--ink))}
.lead{stroke:var(--soft);stroke-width:.7;opacity:.6;fill:none}
.dot{fill:var(--c);stroke:var(--card);stroke-width:1}
.bar{stroke:var(--c);stroke-width:1.1;opacity:.55;fill:none}
.line{stroke:var(--c);stroke-width:1.4;opacity:.5;fill:none}
.rate{--c:var(--rate)}.mesh{--c:var(--mesh)}.plain{--c:var(--plain)}
.jpeg,.jpeg-full{--c:var(--jpeg)}.webp,.webp-full{--c:var(--webp)}.png,.png-full{--c:var(--png)}
.dot.jpeg-full,.dot.webp-full,.dot.png-full{fill:var(--card);stroke:var(--c);stroke-width:1.6}
.line.jpeg-full,.line.webp-full{stroke-dasharray:4 3}
.pair{display:grid;grid-template-columns:minmax(0,1.15fr) minmax(0,1fr);gap:18px;align-items:start}
@media (max-width:760px){.pair{grid-template-columns:1fr}}
.pictures{display:grid;gap:14px;margin-top:12px}
figure{margin:0}
figure img{max-width:100%;image-rendering:auto;border-radius:6px;border:1px solid var(--rule)}
figcaption{color:var(--soft);font-size:12.5px}
.step ul{margin:0 0 8px;padding-left:20px}
footer{color:var(--soft);font-size:12.5px;padding:4px 4px 0}
@media print{:root{--bg:#fff;--card:#fff;--ink:#000;--soft:#444}body{font-size:11pt}main{max-width:none;padding:0}
section,.card,figure,.step{break-inside:avoid}section{overflow:visible}*{print-color-adjust:exact}}
"""

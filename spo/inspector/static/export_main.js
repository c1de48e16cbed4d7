// Entry of an exported file: the server's answers lie in the page, so it works from disk.
import { Page } from "./page.js";
import { drawCharts } from "./run_charts.js";

const { answers, address, charts, look } = JSON.parse(document.getElementById("spo-data").textContent);
const server = {};
for (const [name, answer] of Object.entries(answers))
  server[name] = async () => JSON.stringify({ ok: true, ...answer });

if (matchMedia("(prefers-color-scheme: dark)").matches) document.body.classList.add("dark");
if (location.hash === "" && address) history.replaceState(null, "", `#${address}`);
new Page(document.getElementById("spo-root"), server, { exported: true }).openRun();
if (charts.length) drawCharts(document.querySelector(".run-charts"), charts, look);

"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent) || [];
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const time = (ms) => {
    if (ms == null) return "";
    if (ms < 0.1) return +(ms * 1000).toPrecision(3) + " µs";
    if (ms < 1000) return +ms.toPrecision(3) + " ms";
    if (ms < 1e6) return +(ms / 1000).toPrecision(3) + " s";
    return +(ms / 60000).toPrecision(3) + " min";
  };
  const number = (n) => (n == null ? "" : n >= 1000 ? Math.round(n).toLocaleString("en") : String(+n.toPrecision(3)));
  const share = (x) => {
    if (x == null) return "";
    const nines = Math.max(0, Math.ceil(Math.log10(x) - 1e-9) - 2);
    return ((1 - 1 / x) * 100).toFixed(Math.min(4, nines + 1)).replace(/\.?0+$/, "") + " %";
  };
  const shown = { ms: time, rate: number, count: number };
  // powers puts a tick at each power of ten, and between them where there are few.
  const powers = (u, axis, min, max) => {
    const between = max / min < 50 ? [1, 2, 5] : max / min < 1000 ? [1, 3] : [1];
    const ticks = [];
    for (let power = 10 ** Math.floor(Math.log10(min)); power <= max; power *= 10) ticks.push(...between.map((n) => n * power));
    return ticks.filter((tick) => tick >= min && tick <= max);
  };
  const drawn = new Map(); // :: element → its uPlot

  function draw(chart, paper) {
    const host = document.getElementById(chart.id);
    if (!host) return;
    const old = drawn.get(host);
    if (old) old.destroy();
    const ink = paper ? "#333" : color("soft");
    const grid = { stroke: paper ? "#ddd" : color("grid"), width: 1 };
    const axis = { stroke: ink, grid, ticks: grid, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif", labelSize: 18 };
    const y = shown[chart.y_kind] || number;
    const percentile = chart.x_kind === "percentile";
    const lines = chart.lines || [];
    const options = {
      width: Math.max(260, host.clientWidth),
      height: 300,
      scales: {
        x: percentile ? { time: false, distr: 3, range: (u, min, max) => [1, max] } : { time: false },
        y: chart.log_y ? { distr: 3, range: (u, min, max) => [min / 1.5, max * 1.5] } : { range: (u, min, max) => [0, max > 0 ? max * 1.08 : 1] },
      },
      axes: [
        percentile
          ? { ...axis, label: chart.x_label, splits: (u) => [1, 2, 10, 100, 1000, 1e4, 1e5, 1e6].filter((x) => x <= u.scales.x.max * 1.0001), filter: (u, splits) => splits, values: (u, splits) => splits.map((x) => (x > 1 ? share(x) : u.width < 420 ? "" : "0")) }
          : { ...axis, label: chart.x_label },
        { ...axis, label: chart.y_label, size: 66, ...(chart.log_y ? { splits: powers, filter: (u, splits) => splits } : {}), values: (u, splits) => splits.map((v) => (v == null ? "" : y(v))) },
      ],
      series: [
        { label: percentile ? "share" : "second", value: (u, v) => (percentile ? share(v) : number(v)) },
        ...lines.map((line) => ({
          label: line.label,
          stroke: color(line.color),
          width: line.dash ? 1.5 : line.color === "sync" ? 4.5 : 2, // sync lies under async, and is seen where they coincide
          points: { show: line.y.filter((v) => v != null).length <= 12 },
          dash: line.dash ? [5, 4] : undefined,
          spanGaps: true,
          value: (u, v) => y(v),
        })),
      ],
      legend: { live: !paper, markers: { width: 2, dash: (u, i) => (lines[i - 1] && lines[i - 1].dash ? "dashed" : "solid") } },
      cursor: { y: false, drag: { x: true, y: false } },
    };
    drawn.set(host, new uPlot(options, [chart.x, ...lines.map((line) => line.y)], host));
  }

  const all = (paper) => charts.forEach((chart) => draw(chart, paper));
  let printing = false;
  let folded = [];
  all(false);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => printing || all(false));
  const fit = () => {
    if (printing) return;
    for (const [host, plot] of drawn) {
      const width = Math.max(260, host.clientWidth);
      if (Math.abs(width - plot.width) > 1) plot.setSize({ width, height: plot.height });
    }
  };
  new ResizeObserver(() => requestAnimationFrame(fit)).observe(document.querySelector("main"));
  // Paper is white whatever the screen is; what is folded up on the screen is printed.
  addEventListener("beforeprint", () => {
    printing = true;
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((details) => (details.open = true));
    all(true);
    for (const plot of drawn.values()) plot.setSize({ width: 640, height: 210 });
  });
  addEventListener("afterprint", () => {
    printing = false;
    folded.forEach((details) => (details.open = false));
    all(false);
  });
})();

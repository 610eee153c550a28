(() => {
  "use strict";
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const touch = window.matchMedia("(pointer: coarse)").matches;
  const hidden = new Set();
  let axis = "epochs";

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const stripes = (layout) => ((layout.meta && layout.meta.stripes) || []).map((s) => ({
    type: "rect", xref: "x", yref: "paper", y0: 0, y1: 1, x0: s[axis][0], x1: s[axis][1],
    fillcolor: colour("--muted"), opacity: 0.16, line: { width: 0 }, layer: "below",
  }));

  function themed(layout) {
    const look = {
      gridcolor: colour("--grid"), linecolor: colour("--line"), tickcolor: colour("--line"), showline: true,
    };
    return {
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("--text"), size: 12, family: getComputedStyle(document.body).fontFamily },
      hoverlabel: { bgcolor: colour("--panel"), bordercolor: colour("--line"), font: { color: colour("--text") } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--muted"), activecolor: colour("--accent") },
      dragmode: touch ? false : "zoom", // a finger on a chart must still scroll the page
      shapes: stripes(layout),
      xaxis: { ...layout.xaxis, ...look },
      yaxis: { ...layout.yaxis, ...look },
    };
  }

  const xOf = (trace) => (axis === "seconds" && trace.meta && trace.meta.seconds) || trace.x;
  const dataOf = (chart) => chart.data.map((trace) => ({
    ...trace, x: xOf(trace), visible: !(trace.meta && hidden.has(trace.meta.method)),
  }));

  function layoutOf(chart) {
    const layout = themed(chart.layout);
    if (axis === "seconds" && chart.data.some((trace) => trace.meta && trace.meta.seconds)) {
      layout.xaxis = {
        ...layout.xaxis, title: { ...layout.xaxis.title, text: "training seconds" }, dtick: null, tickmode: "auto",
      };
    }
    return layout;
  }

  const config = {
    responsive: true, displaylogo: false,
    displayModeBar: window.matchMedia("(hover: hover)").matches ? "hover" : false, // it would cover the lines
    modeBarButtons: [["toImage", "resetScale2d"]],
  };
  const draw = (key) => Plotly.react(key, dataOf(charts[key]), layoutOf(charts[key]), config);

  // epochs are whole numbers, so their ticks are, however far one zooms in
  function wholeStep(width) {
    const power = 10 ** Math.floor(Math.log10(Math.max(width / 6, 1)));
    return [1, 2, 5, 10].map((step) => step * power).find((step) => width / step <= 6);
  }
  function zoomed(key, change) {
    const [low, high] = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
    if (axis === "epochs" && low !== undefined) Plotly.relayout(key, { "xaxis.dtick": wholeStep(high - low) });
    if (change["xaxis.autorange"]) draw(key);
  }
  const drawAll = () => Promise.all(Object.keys(charts).map(draw));

  function press(group, wanted) {
    group.forEach((button) => button.setAttribute("aria-pressed", String(wanted(button))));
  }

  const methods = [...document.querySelectorAll("button[data-method]")];
  methods.forEach((button) => button.addEventListener("click", () => {
    const number = Number(button.dataset.method);
    if (!hidden.delete(number)) hidden.add(number);
    press(methods, (b) => !hidden.has(Number(b.dataset.method)));
    document.querySelectorAll("figure[data-only]").forEach((figure) => {
      figure.hidden = hidden.has(Number(figure.dataset.only));
    });
    drawAll();
  }));

  const axes = [...document.querySelectorAll("button[data-axis]")];
  axes.forEach((button) => button.addEventListener("click", () => {
    axis = button.dataset.axis;
    press(axes, (b) => b === button);
    drawAll();
  }));

  const striped = Object.values(charts).find((chart) => chart.layout.meta && chart.layout.meta.stripes.length);
  const hint = document.querySelector(".stripes");
  if (striped && hint) {
    hint.textContent = `Shaded: epochs of the phase “${striped.layout.meta.stripes[0].phase}”.`;
    hint.hidden = false;
  }

  dark.addEventListener("change", drawAll);
  drawAll().then(() => {
    Object.keys(charts).filter((key) => charts[key].layout.xaxis.tick0 === 0).forEach((key) => {
      document.getElementById(key).on("plotly_relayout", (change) => zoomed(key, change));
    });
    document.documentElement.dataset.drawn = "true";
  });
})();

"use strict";
(() => {
  // Two palettes of eight for methods, each with at least 3 : 1 against its paper. Marks and dashes differ as well.
  const themes = {
    light: {
      "$paper": "#ffffff", "$ink": "#1b1f24", "$quiet": "#6b7580", "$grid": "#e3e7eb",
      "$0": "#0072b2", "$1": "#c44e00", "$2": "#00805c", "$3": "#b04a8c",
      "$4": "#946200", "$5": "#2b93c9", "$6": "#5b3fa8", "$7": "#7a1f1f",
    },
    dark: {
      "$paper": "#15181c", "$ink": "#e6e9ed", "$quiet": "#98a2ad", "$grid": "#2f363d",
      "$0": "#4ba9ea", "$1": "#ff8b4a", "$2": "#31c49a", "$3": "#e59acb",
      "$4": "#f0b93a", "$5": "#a5d8fa", "$6": "#ab97f5", "$7": "#f07f7f",
    },
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const paper = matchMedia("print");
  const panels = JSON.parse(document.getElementById("panels").textContent);
  const PRINTED = 660;  // CSS pixels: fits the text of A4 and of Letter
  const PRINTED_HEIGHT = 360;  // two on a page

  function painted(figure, theme) {
    return JSON.parse(JSON.stringify(figure), (key, value) => (/color$/.test(key) && theme[value]) || value);
  }

  // Below the plot, where it takes no width; its rows need room that the plot must not lose.
  function legendRows(figure, width) {
    const names = figure.data.filter((trace) => trace.name && trace.showlegend !== false).map((trace) => trace.name);
    const column = 60 + 7.5 * Math.max(0, ...names.map((name) => name.length));
    const columns = Math.max(1, Math.floor((width - 66) / column));
    return names.length > 1 ? Math.ceil(names.length / columns) : 0;
  }

  function draw(panel, printing) {
    const place = document.getElementById("figure-" + panel.id);
    const plot = place.querySelector(".plot");
    const picked = panel.choices.map((choice, position) => {
      const select = place.querySelector(`select[data-position="${position}"]`);
      return select ? select.value : 0;
    });
    const theme = themes[dark.matches && !printing ? "dark" : "light"];
    const figure = painted(panel.figures[picked.join(",")], theme);
    const least = (figure.layout.meta || {}).least || 0;
    const width = printing ? PRINTED : Math.max(plot.parentElement.clientWidth, least);
    figure.layout.width = width;
    if (printing && figure.data[0].type !== "heatmap") figure.layout.height = PRINTED_HEIGHT;
    figure.layout.height += 21 * legendRows(figure, width);
    figure.layout.dragmode = false;
    plot.style.width = width + "px";
    const narrow = width < 560;
    const options = { displaylogo: false, displayModeBar: narrow || printing ? false : "hover", scrollZoom: false };
    options.modeBarButtons = [["toImage", "zoom2d", "pan2d", "resetScale2d"]];  // none that sends anything anywhere
    return Plotly.react(plot, figure.data, figure.layout, options);
  }

  function drawAll(printing) {
    panels.forEach((panel) => draw(panel, printing));
  }

  panels.forEach((panel) => {
    document.querySelectorAll(`#figure-${panel.id} select`).forEach((select) => {
      select.addEventListener("change", () => draw(panel, false));
    });
  });
  let shown = 0;
  addEventListener("resize", () => {
    if (shown === innerWidth || paper.matches) return;
    shown = innerWidth;
    drawAll(false);
  });
  dark.addEventListener("change", () => drawAll(paper.matches));
  addEventListener("beforeprint", () => drawAll(true));
  addEventListener("afterprint", () => drawAll(false));
  shown = innerWidth;
  drawAll(false);
})();

"use strict";
(() => {
  const element = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(element(id).textContent);

  // Charts

  const { config, specs } = read("charts-data");
  const views = {};
  const drawn = Promise.all(
    [...document.querySelectorAll(".chart")].map(async (place) => {
      const name = place.dataset.chart;
      const options = { actions: false, renderer: "svg", config, mode: "vega-lite" };
      views[name] = (await vegaEmbed(place, specs[name], options)).view;
    }),
  ).then(() => {
    views.overview.addEventListener("click", (_, item) => {
      const net = item && item.datum && item.datum.net;
      if (net) choose({ net: filters.net.value === net ? "" : net });
    });
    document.documentElement.dataset.ready = "true";
  });

  // Filters: an element with data-net, data-task, ... is hidden unless it has the chosen value among its words.

  const form = element("filters");
  const filters = Object.fromEntries(["net", "task", "claim", "scale"].map((key) => [key, form.elements[key]]));

  function filter() {
    const chosen = Object.entries(filters).filter(([, select]) => select.value);
    let shown = 0;
    const all = document.querySelectorAll("main :is([data-net], [data-claim], [data-task])");
    for (const item of all) {
      item.hidden = chosen.some(([key, select]) => key in item.dataset && !item.dataset[key].split(" ").includes(select.value));
      shown += !item.hidden && item.matches("tr, article");
    }
    for (const table of document.querySelectorAll("main .wide")) {
      const rows = [...table.querySelectorAll("tbody tr")];
      table.hidden = rows.length > 0 && rows.every((row) => row.hidden);
    }
    element("shown").textContent = chosen.length ? `${shown} entries` : "";
    drawn.then(() => views.overview.signal("net", filters.net.value).runAsync());
  }

  function choose(values) {
    for (const [key, value] of Object.entries(values)) filters[key].value = value;
    filter();
  }

  form.addEventListener("change", filter);
  form.addEventListener("reset", () => setTimeout(filter));
  form.addEventListener("submit", (event) => event.preventDefault());

  // A number shows where it comes from next to it; without this script its link leads to the same text.

  const popover = element("popover");
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a.n");
    popover.hidden = !link && !popover.contains(event.target);
    if (!link) return;
    event.preventDefault();
    const source = document.querySelector(link.getAttribute("href"));
    popover.replaceChildren(...[...source.children].map((child) => child.cloneNode(true)));
    popover.hidden = false;
    const at = link.getBoundingClientRect();
    const left = Math.min(at.left, document.documentElement.clientWidth - popover.offsetWidth - 8);
    popover.style.left = `${Math.max(8, left) + scrollX}px`;
    const below = at.bottom + 6 + popover.offsetHeight <= innerHeight || at.top < popover.offsetHeight + 6;
    popover.style.top = `${(below ? at.bottom + 6 : at.top - 6 - popover.offsetHeight) + scrollY}px`;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") popover.hidden = true;
  });
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));

  // The explorer

  const data = read("explorer-data");
  const plane = element("plane");
  const which = element("which");
  const moment = element("moment");
  const [low, high] = data.box;
  const place = (s, t) => [(data.grid * (s - low)) / (high - low), (data.grid * (high - t)) / (high - low)];

  function add(parent, name, attributes, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return parent.appendChild(node);
  }

  function thumbnails(parent) {
    // The three test images at their places, dark on white, the class below.
    const [rows, columns] = data.shape.slice(1);
    const side = data.grid / 11;
    [[0, 0], [1, 0], [0, 1]].forEach(([s, t], k) => {
      const [x, y] = place(s, t);
      const group = add(parent, "g", { class: "digit", transform: `translate(${x - side / 2} ${y - side / 2})` });
      add(group, "rect", { x: -20, y: -20, width: side + 40, height: side + 40, fill: "#fff", stroke: "#1c1c1c", "stroke-width": 12 });
      const brightest = Math.max(...data.images[k]);
      data.images[k].forEach((value, i) => {
        if (!value) return;
        const at = { x: ((i % columns) * side) / columns, y: (Math.floor(i / columns) * side) / rows };
        add(group, "rect", { ...at, width: side / columns + 1, height: side / rows + 1, "fill-opacity": value / brightest });
      });
    });
  }

  function draw() {
    const net = data.nets[which.value];
    const now = net.moments[moment.value];
    const visible = (name) => element(`show-${name}`).checked;
    plane.replaceChildren();
    if (visible("classes")) {
      for (const [label, path] of Object.entries(now.areas)) {
        const color = data.colors[label % data.colors.length];
        add(plane, "path", { class: "area", d: path, style: `fill:${color};stroke:${color}` });
      }
    }
    if (visible("regions")) add(plane, "path", { class: "regions", d: now.region_borders });
    if (visible("pieces")) add(plane, "path", { class: "pieces", d: now.piece_borders });
    if (visible("classes")) {
      for (const [label, x, y] of now.area_labels) {
        add(plane, "text", { x, y, "font-size": data.grid / 24, "stroke-width": data.grid / 150 }, label);
      }
    }
    thumbnails(plane);
    const last = net.moments.length - 1;
    const words = now.epoch === 0 ? "before training" : Number(moment.value) === last ? "after training" : "during training";
    element("which-name").textContent = net.variant;
    element("moment-name").textContent = `${now.epoch}, ${words}`;
    moment.setAttribute("aria-valuetext", element("moment-name").textContent);
    which.setAttribute("aria-valuetext", net.variant);
    const count = (number) => number.toLocaleString("en");
    const error = now.test_error === null ? "–" : `${now.test_error.toFixed(1)} %`;
    const values = [count(now.regions), count(now.pieces), count(now.maps), error, count(net.parameters)];
    element("counts").querySelectorAll("dd").forEach((cell, k) => (cell.textContent = values[k]));
    element("table_explorer").querySelectorAll("tbody tr").forEach((row, k) => {
      [...row.cells].forEach((cell, i) => cell.classList.toggle("now", k === Number(which.value) && i === Number(moment.value) + 2));
    });
  }

  // Zoom and move by changing the part of the plane that is shown.

  let view = [0, 0, data.grid];
  const pointers = new Map();

  function show([x, y, side]) {
    side = Math.min(Math.max(side, data.grid / 200), data.grid);
    view = [Math.min(Math.max(x, 0), data.grid - side), Math.min(Math.max(y, 0), data.grid - side), side];
    plane.setAttribute("viewBox", `${view[0]} ${view[1]} ${side} ${side}`);
  }

  function zoom(factor, clientX, clientY) {
    const frame = plane.getBoundingClientRect();
    const [u, v] = [(clientX - frame.left) / frame.width, (clientY - frame.top) / frame.height];
    const side = Math.min(Math.max(view[2] * factor, data.grid / 200), data.grid);
    show([view[0] + u * (view[2] - side), view[1] + v * (view[2] - side), side]);
  }

  const middle = () => {
    const points = [...pointers.values()];
    const mean = (key) => points.reduce((sum, point) => sum + point[key], 0) / points.length;
    const apart = points.length > 1 ? Math.hypot(points[0].x - points[1].x, points[0].y - points[1].y) : 0;
    return { x: mean("x"), y: mean("y"), apart };
  };

  plane.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(event.deltaY / 400), event.clientX, event.clientY);
  });
  plane.addEventListener("pointerdown", (event) => {
    plane.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  plane.addEventListener("pointermove", (event) => {
    if (!pointers.has(event.pointerId)) return;
    const before = middle();
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    const after = middle();
    const unit = view[2] / plane.getBoundingClientRect().width;
    show([view[0] - (after.x - before.x) * unit, view[1] - (after.y - before.y) * unit, view[2]]);
    if (before.apart && after.apart) zoom(before.apart / after.apart, after.x, after.y);
  });
  for (const end of ["pointerup", "pointercancel"]) plane.addEventListener(end, (event) => pointers.delete(event.pointerId));
  const reset = () => show([0, 0, data.grid]);
  plane.addEventListener("dblclick", reset);
  element("whole").addEventListener("click", reset);
  for (const control of [which, moment, ...document.querySelectorAll(".switches input")]) control.addEventListener("input", draw);
  draw();
})();

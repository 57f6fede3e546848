"use strict";
// The utterances of report.html: filters, sorts, plays them. What comes from
// the data is set as text, never as markup.
(() => {
  const find = (selector) => document.querySelector(selector);
  const data = JSON.parse(find("#data").textContent);
  const colors = JSON.parse(find("#colors").textContent);
  const PER_PAGE = 25;
  const form = find("#filters");
  const body = find("#rows tbody");
  const cut = new Set(data.cut);
  const audio = new Audio();
  let sort = "confidence";
  let sign = -1;
  let page = 0;
  let shown = [];
  let playing = null;

  for (const run of data.runs) {
    run.confidence = run.probabilities.map((p) => p && Math.max(...p) / 10);
  }

  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    const { data: named = {}, ...others } = properties;
    Object.assign(element, others);
    Object.assign(element.dataset, named);
    element.append(...children);
    return element;
  }

  // Filter and sort ---------------------------------------------------------

  function order() {
    const run = data.runs[Number(form.run.value)];
    if (!run) return [];
    const wanted = (name) =>
      form[name].value === "" ? null : Number(form[name].value);
    const [label, predicted, speaker] = ["label", "predicted", "speaker"].map(wanted);
    const least = Number(form.least.value);
    const most = Number(form.most.value || 100); // an emptied field is no bound
    const result = form.result.value;
    const chosen = [];
    for (let i = 0; i < data.id.length; i += 1) {
      if (run.probabilities[i] === null) continue;
      if (label !== null && data.label[i] !== label) continue;
      if (predicted !== null && run.predicted[i] !== predicted) continue;
      if (speaker !== null && data.speaker[i] !== speaker) continue;
      if (run.confidence[i] < least || run.confidence[i] > most) continue;
      const isRight = data.label[i] === run.predicted[i];
      if (result && isRight !== (result === "right")) continue;
      chosen.push(i);
    }
    // the utterances and the speakers come in the order of their names
    if (sort !== "id") {
      const values = run[sort] || data[sort];
      return chosen.sort((a, b) => sign * (values[a] - values[b]) || a - b);
    }
    return sign < 0 ? chosen.reverse() : chosen;
  }

  function update() {
    shown = order();
    page = 0;
    find("#count").textContent = `${shown.length} of ${data.id.length} utterances`;
    for (const button of document.querySelectorAll("[data-sort]")) {
      const isSorted = button.dataset.sort === sort;
      const way = sign > 0 ? "ascending" : "descending";
      button.parentElement.ariaSort = isSorted ? way : "none";
      button.textContent = button.textContent.replace(/ [▲▼]$/, "");
      if (isSorted) button.textContent += sign > 0 ? " ▲" : " ▼";
    }
    show();
  }

  // A page of rows ----------------------------------------------------------

  function show() {
    stop();
    const pages = Math.max(1, Math.ceil(shown.length / PER_PAGE));
    const first = page * PER_PAGE;
    body.replaceChildren(...shown.slice(first, first + PER_PAGE).map(makeRow));
    find("#place").textContent = `page ${page + 1} of ${pages}`;
    find("#previous").disabled = page === 0;
    find("#next").disabled = page + 1 >= pages;
    draw();
  }

  function makeRow(i) {
    const run = data.runs[Number(form.run.value)];
    const label = data.label[i];
    const predicted = run.predicted[i];
    const cell = (name, ...children) => make("td", { data: { name } }, ...children);
    const head = make("i");
    const button = make("button", {
      type: "button", className: "play", textContent: "▶",
      ariaLabel: `Play ${data.id[i]}`,
    });
    const name = cell("utterance", data.id[i]);
    button.addEventListener("click", () => play(i, button, head, name));
    const bars = make("div", { className: "bars", role: "img" });
    const words = data.classes.map((one, c) => {
      const share = run.probabilities[i][c] / 10;
      const bar = make("i", { className: c === label ? "true" : "" });
      bar.style.setProperty("--color", colors[c]);
      bar.style.height = `${share}%`;
      bars.append(bar);
      return `${one} ${share} %`;
    }).join(", ");
    bars.title = words;
    bars.ariaLabel = words;
    const length = data.seconds[i];
    const wave = make("td", { className: "broad", data: { name: "attention" } });
    if (data.envelope[i]) {
      const canvas = make("canvas", { role: "img" });
      canvas.ariaLabel = describe(i, run.attention[i]);
      Object.assign(canvas.dataset, { row: i });
      wave.append(make("div", { className: "wave" }, canvas, head));
    } else {
      wave.append("not recorded");
    }
    return make(
      "tr", {},
      cell("", button),
      name,
      cell("speaker", data.speakers[data.speaker[i]]),
      cell("true", data.classes[label]),
      make("td", {
        className: label === predicted ? "" : "wrong",
        data: { name: "predicted" },
        textContent: data.classes[predicted] + (label === predicted ? "" : " ✗"),
      }),
      cell("confidence", `${run.confidence[i].toFixed(1)} %`),
      cell("length", length === null ? "" : `${length.toFixed(2)} s`, ...makeCut(i)),
      make("td", { className: "broad", data: { name: "probabilities" } }, bars),
      wave,
    );
  }

  function makeCut(i) {
    if (!cut.has(i)) return [];
    const seconds = (data.end[i] - (data.start[i] || 0)).toFixed(1);
    return [make("small", { textContent: ` first ${seconds} s used` })];
  }

  function describe(i, attention) {
    if (!attention) return "Waveform";
    const heights = [...attention].map((d) => data.digits.indexOf(d));
    const place = heights.indexOf(Math.max(...heights)) / data.bins;
    return `Waveform; attention is highest at ${Math.round(100 * place)} % of it`;
  }

  function draw() {
    const style = getComputedStyle(document.documentElement);
    const [wave, heat] = ["--wave", "--heat"].map((name) => style.getPropertyValue(name));
    const top = data.digits.length - 1;
    const run = data.runs[Number(form.run.value)];
    // measured before any is drawn, which would have the page laid out anew
    const sizes = [...body.querySelectorAll("canvas")].map(
      (canvas) => [canvas, canvas.clientWidth, canvas.clientHeight],
    );
    for (const [canvas, width, height] of sizes) {
      canvas.width = width * devicePixelRatio;
      canvas.height = height * devicePixelRatio;
      const context = canvas.getContext("2d");
      context.scale(devicePixelRatio, devicePixelRatio);
      const i = Number(canvas.dataset.row);
      const attention = run.attention[i];
      const step = width / data.bins;
      const strip = attention ? 7 : 0;
      const half = (height - strip - 2) / 2;
      for (let b = 0; b < data.bins; b += 1) {
        const loud = data.digits.indexOf(data.envelope[i][b]) / top;
        const size = Math.max(1, 2 * half * loud);
        const place = [b * step, half - size / 2, Math.max(1, step - 0.5), size];
        const weight = attention ? data.digits.indexOf(attention[b]) / top : 0;
        context.globalAlpha = 1;
        context.fillStyle = wave;
        context.fillRect(...place);
        context.globalAlpha = weight;
        context.fillStyle = heat;
        context.fillRect(...place);
        context.fillRect(b * step, height - strip * weight, step, strip * weight);
      }
    }
  }

  // Play --------------------------------------------------------------------

  function stop() {
    audio.pause();
    if (!playing) return;
    playing.button.textContent = "▶";
    playing.head.style.display = "none";
    playing = null;
  }

  function play(i, button, head, name) {
    const isThis = playing && playing.i === i;
    stop();
    name.querySelector(".message")?.remove();
    if (isThis) return;
    const link = data.wav[i];
    const start = data.start[i] || 0;
    const end = data.end[i];
    const own = { i, button, head, start, end };
    const tell = (message) => {
      if (playing === own) stop();
      name.append(make("p", { className: "message", role: "alert", textContent: message }));
    };
    if (!link) {
      tell("The corpus table that says where the recording is, is gone.");
      return;
    }
    playing = own;
    button.textContent = "■";
    audio.src = link;
    audio.currentTime = start;
    audio.play().then(follow, (error) => {
      if (playing !== own || error.name === "AbortError") return;
      tell(
        `${link} cannot be played: it is gone from there, ` +
        "or this browser does not know its format.",
      );
    });
  }

  // also in the background, where nothing is drawn, but the audio goes on
  function stopAtEnd() {
    if (!playing) return;
    const { end } = playing;
    if (audio.ended || (end !== null && audio.currentTime >= end)) stop();
  }

  function follow() {
    stopAtEnd();
    if (!playing) return;
    const { head, start, end } = playing;
    const last = end === null ? audio.duration : end;
    const share = (audio.currentTime - start) / (last - start);
    head.style.display = "block";
    head.style.left = `${100 * Math.max(0, share)}%`;
    requestAnimationFrame(follow);
  }

  // Start -------------------------------------------------------------------

  audio.addEventListener("timeupdate", stopAtEnd);

  const fill = (name, names) => names.forEach((text, value) => {
    form[name].append(make("option", { value, textContent: text }));
  });
  fill("label", data.classes);
  fill("predicted", data.classes);
  fill("speaker", data.speakers);
  fill("run", data.runs.map((run) => run.seed));
  form.run.parentElement.hidden = data.runs.length < 2;
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  find("#rows thead").addEventListener("click", (event) => {
    const key = event.target.dataset.sort;
    if (!key) return;
    sign = key === sort ? -sign : key === "confidence" ? -1 : 1;
    sort = key;
    update();
  });
  for (const [id, step] of [["#previous", -1], ["#next", 1]]) {
    find(id).addEventListener("click", () => {
      page += step;
      show();
      find("#filters").scrollIntoView();
    });
  }
  find(".confusion").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    for (const name of ["result", "speaker", "least", "most"]) form[name].value = "";
    form.label.value = button.dataset.label;
    form.predicted.value = button.dataset.predicted;
    update();
    find("#utterances").scrollIntoView();
    form.result.focus({ preventScroll: true }); // the keyboard goes on there
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("resize", draw);
  update();
})();

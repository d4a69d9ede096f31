// Pictures: images with the places where they lost the class, and what units respond to.

const SHOWN = 12;

function showImages(selection) {
  const { data, classes } = selection;
  if (!data.images) {
    selection.fill("images", missing("No images were kept when this run was explained.", ...selection.explain));
    return;
  }
  const found = data.images.filter((image) => same([...image.forgotten].sort((a, b) => a - b), classes));
  if (!found.length) {
    selection.fill("images", missing(`No images were kept with ${selection.names} forgotten.`, ...selection.explain));
    return;
  }
  const gallery = el("div", { class: "gallery" }, found.slice(0, SHOWN).map((image) => imageFigure(selection, image)));
  const toggle = el("label", { class: "toggle" },
    el("input", { type: "checkbox", checked: true, onchange: (event) => gallery.classList.toggle("bare", !event.target.checked) }), " show maps");
  const left = data.leftOut ? missing(`${data.leftOut} images of this run are left out of this page, which would be too large: explanation.json holds them.`) : null;
  selection.fill("images",
    el("p", {}, "Colour marks the pixels through which forgetting changes the class’s logit: red where they held it up, and it is taken; blue where they held it down."), toggle, gallery, ...(left ? [left] : []));
}

function imageFigure(selection, image) {
  const { data } = selection;
  const label = data.names[image.label];
  const frame = el("div", { class: "frame" },
    el("img", { src: image.picture, alt: `test image ${image.image}, ${label}` }),
    image.map ? el("img", { class: "overlay", src: image.map, alt: "" }) : null);
  const lines = [el("span", { class: "verdict" }, `${data.names[image.before]} → ${data.names[image.after]}`)];
  if (image.logit_before != null && image.logit_after != null) {
    const share = image.unplaced ?? 0;
    const unplaced = Math.abs(share) < 0.005 ? "" : `, ${percent(share, 0)} of it not placed`;
    lines.push(el("span", {}, `logit ${figure(image.logit_before, 1)} → ${figure(image.logit_after, 1)}${unplaced}`));
  }
  lines.push(...image.layers.map(({ name, share }) => el("span", { class: "share" }, el("span", {}, name), percent(share, 0))));
  const told = data.recount?.images.find((entry) => entry.image === image.image);
  return el("figure", {}, frame, el("figcaption", {},
    el("span", { class: "number-of" }, `${label}, image ${image.image}`), lines,
    told ? el("details", {}, el("summary", {}, "In words"), sentences(told.sentences)) : null));
}

function showResponses(selection) {
  const { data, classes } = selection;
  const found = classes.length === 1 ? (data.responses ?? []).filter((response) => response.class === classes[0]) : [];
  if (!found.length) return void selection.fill("responses");
  selection.fill("responses", found.map((response) => el("div", { class: "response" },
    el("p", {}, el("code", {}, response.layer), `, unit ${response.unit}`),
    strip("Images that excite it", response.exciting.map((shown) => thumbnail(data, shown, figure(shown.value, 2), shown.box))),
    strip("Images whose logit changes most when it is closed", response.closing.map((shown) => thumbnail(data, shown, shown.change == null ? NOTHING : signed(shown.change, 2)))))));
}

function strip(title, pictures) {
  return pictures.length ? el("div", { class: "strip" }, el("p", { class: "label" }, title), el("div", { class: "pictures" }, pictures)) : null;
}

function thumbnail(data, shown, text, box) {
  const frame = el("div", { class: "frame" }, el("img", { src: shown.picture, alt: `test image ${shown.image}` }));
  if (box) {
    const [, height, width] = data.shape;
    const [x0, y0, x1, y1] = box;
    const mark = el("div", { class: "box" });
    Object.assign(mark.style, { left: `${100 * x0 / width}%`, top: `${100 * y0 / height}%`, width: `${100 * (x1 - x0) / width}%`, height: `${100 * (y1 - y0) / height}%` });
    frame.append(mark);
  }
  return el("figure", {}, frame, el("figcaption", {}, text));
}

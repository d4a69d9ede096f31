// What is shown of the chosen classes: figures, predictions, layers, units, sentences.

const NETWORKS = ["before", "forgotten", "retrained without it"];
const ROWS = 10;  // of the predicted classes, so many have a row; the others share one
const LISTED = 8;

class Selection {
  constructor(root, data) {
    Object.assign(this, { root, data, suffix: root.closest(".run").dataset.suffix ?? "" });
  }

  part(name) {
    const part = this.root.querySelector(`[data-part="${name}"]`);
    return { part, body: part.querySelector(".body") };
  }

  fill(name, ...children) {
    const { part, body } = this.part(name);
    part.hidden = !children.length;
    body.replaceChildren(...children.flat());
    return body;
  }

  name(c) {
    return this.data.names[c];
  }

  async show(classes) {
    const { data } = this;
    this.classes = [...classes].sort((a, b) => a - b);
    this.names = listed(this.classes.map((c) => this.name(c)));
    const together = classes.length > 1 ? ["--set", quoted(this.classes.join(","))] : [];
    this.explain = ["memmod explain", quoted(data.folder), ...together];
    this.showResult();
    if (!data.explained) {
      for (const name of ["recount", "layers", "taken", "units", "images", "responses"]) this.fill(name);
      // what was erased for good has no memory that could be explained
      if (data.fixed) this.fill("flow");
      else this.fill("flow", missing("What its images are taken for, how many units it closes in each layer, and where single images lose it: not looked at yet.", ...this.explain));
      return;
    }
    this.showTaken();
    this.showUnits();
    this.showRecount();
    showImages(this);
    showResponses(this);
    await Promise.all([this.showFlows(), this.showLayers()]);
  }

  showResult() {
    const { data, classes } = this;
    const cards = [];
    const card = (label, number, before, kind = "") => cards.push(el("li", { class: "card" },
      el("p", { class: "label" }, label), el("p", { class: `number ${kind}` }, number), el("p", { class: "before" }, before)));
    const found = data.measured.find((entry) => same(entry.classes, classes));
    let note = null, status = `Forgotten: ${this.names}.`;
    if (found) {
      card(`accuracy on ${this.names}`, percent(found.forget), `${percent(found.forgetBefore)} before`, "forget");
      card("accuracy on all others", percent(found.retain),
        `${percent(found.retainBefore)} before: ${points(found.retain - found.retainBefore)} points`, "retain");
      status = `With ${this.names} forgotten, accuracy on ${classes.length > 1 ? "them" : "it"} is ${percent(found.forget)}, on all others ${percent(found.retain)}.`;
    } else if (data.fixed && data.byClass) {
      // one alone stands in the summary
      for (const c of classes.length > 1 ? classes : []) {
        const before = data.byClass.original?.[c];
        card(`accuracy on ${this.name(c)}`, percent(data.byClass.now[c]),
          before == null ? "on its test images" : `${percent(before)} before`, "forget");
      }
      status = `Erased: ${this.names}.`;
    } else if (data.heldOut && classes.length === 1) {
      card(`accuracy on ${this.names}`, percent(data.heldOut.forget[classes[0]]), "on held-out training images", "forget");
      note = missing("Not measured on test images yet.", "memmod evaluate", quoted(data.folder));
    } else if (classes.length > 1) {
      note = missing(`The set ${this.names} was never measured, and cannot be computed here: it takes the network. This measures it:`,
        "memmod bake", quoted(data.folder), "--forget", quoted(classes.join(",")));
    } else {
      note = missing("Not measured on test images yet.", "memmod evaluate", quoted(data.folder));
    }
    const closed = data.atlas && classes.length === 1 ? data.atlas.closed[classes[0]] : null;
    if (closed != null) {
      card("units closed", counted(closed), `of ${counted(data.atlas.units)}: ${percent(data.atlas.units ? closed / data.atlas.units : null)}`);
    }
    const audit = data.audited.findIndex((entry) => same(entry.classes, classes));
    if (audit >= 0 && !data.fixed) {
      const { worse, judged } = data.audited[audit];
      const target = `#${this.root.closest(".run").id}-audit-${audit + 1}`;
      card("audited figures that tell too much", `${worse} of ${judged}`, el("a", { href: target }, "the audit"));
    }
    this.root.querySelector(".result").replaceChildren(...(cards.length ? [el("ul", { class: "cards" }, cards)] : []), ...(note ? [note] : []));
    this.root.querySelector(".status").textContent = status;
  }

  /** Shares of predictions on class c's images: before, after, retrained; null where there are none. */
  sharesOf(c) {
    const { flows } = this.data;
    const set = this.classes.length > 1 ? flows.sets.find((entry) => same(entry.classes, this.classes)) : null;
    const after = this.classes.length > 1 ? set?.after[c] : flows.after?.[c];
    return [flows.before?.[c], after, this.classes.length > 1 ? null : flows.retrained[c]];
  }

  async showFlows() {
    const { data, classes } = this;
    if (!data.flows) {
      this.fill("flow", missing("Predictions were left out when this run was explained.", ...this.explain));
      return;
    }
    const blocks = [], drawings = [];
    for (const c of classes) {
      const shares = this.sharesOf(c);
      if (!shares[0] && !shares[1]) {
        const none = data.flows.before?.[c] === null;
        blocks.push(none ? missing(`There are no test images of ${this.name(c)}.`)
          : missing(`What images of ${this.name(c)} are taken for with ${this.names} forgotten was not recorded.`, ...this.explain));
        continue;
      }
      if (classes.length > 1 && !shares[1]) {
        blocks.push(missing(`Predictions on images of ${this.name(c)} with the set ${this.names} forgotten were not recorded; these are those before.`));
      }
      const rows = flowRows(shares, data.names);
      const box = el("div", { class: "chart", role: "img", "aria-label": `Predictions on test images of ${this.name(c)}. The table below holds the same figures.` });
      const shown = NETWORKS.filter((_, k) => shares[k]);
      const cells = [...new Set(rows.map((row) => row.class))].map((name) =>
        [name, ...shown.map((network) => percent(rows.find((row) => row.class === name && row.network === network)?.share))]);
      blocks.push(el("p", {}, `Test images of ${this.name(c)} are taken for:`), box,
        el("details", {}, el("summary", {}, "As a table"), table(["predicted", ...shown], cells, `Predictions on images of ${this.name(c)}${this.suffix}`)));
      if (!shares[2] && classes.length === 1) {
        blocks.push(missing("No network that was retrained without it is shown beside.", "memmod retrain",
          quoted(data.base ?? "BASE"), "--without", quoted(this.name(c))));
      }
      drawings.push(() => draw(box, data.charts["flow-choice"], rows));
    }
    this.fill("flow", blocks);
    await Promise.all(drawings.map((start) => start()));
  }

  async showLayers() {
    const { data, classes } = this;
    if (data.fixed) return void this.fill("layers");
    if (!data.atlas) {
      this.fill("layers", missing("How many units it closes in each layer has not been counted yet.", ...this.explain));
      return;
    }
    if (classes.length > 1) {
      this.fill("layers", missing("Closed units were counted for each class by itself: choose one."));
      return;
    }
    const [c] = classes;
    const rows = data.atlas.layers.map(({ name, units, closed }) => ({
      layer: name,
      share: units ? closed[c] / units : 0,
      mean: units ? closed.reduce((sum, value) => sum + value, 0) / closed.length / units : 0,
      shown: `${closed[c]} of ${units}`,
    }));
    const label = `Closed units for ${this.name(c)}: ${rows.map((row) => `${row.layer} ${row.shown}`).slice(0, 60).join(", ")}`;
    const box = el("div", { class: "chart", role: "img", "aria-label": label });
    const nearest = data.atlas.nearest?.[c] ?? [];
    const alike = nearest.length ? el("p", { class: "alike" }, "Rows most like its own (weighted Jaccard): ",
      listed(nearest.slice(0, 5).map(([other, value]) => `${this.name(other)} ${figure(value, 2)}`)), ".") : null;
    this.fill("layers", el("p", {}, `Units whose gate is below ${data.atlas.threshold} with ${this.name(c)} selected; the tick is the mean over all classes.`),
      box, ...(alike ? [alike] : []));
    await draw(box, data.charts["layer-choice"], rows);
  }

  showUnits() {
    const { data, classes } = this;
    const units = classes.length === 1 ? data.atlas?.specific[classes[0]] ?? [] : [];
    if (!units.length) return void this.fill("units");
    this.fill("units", table(["layer", "unit", "specificity", "gate"],
      units.slice(0, LISTED).map(([layer, unit, specificity, gate]) => [layer, `${unit}`, figure(specificity), figure(gate)]),
      `Units that ${this.names} closes${this.suffix}`));
  }

  showTaken() {
    const { data, classes } = this;
    const found = classes.length === 1 ? data.taken?.[classes[0]] : null;
    if (!found) return void this.fill("taken");
    const parts = (found.stages.length ? found.stages : found.layers).map(({ name, share }) => [name, percent(share, 0)]);
    const units = found.units.slice(0, LISTED).map(({ layer, unit, share }) => [`${layer}, unit ${unit}`, percent(share, 0)]);
    this.fill("taken", el("p", {}, `Of ${figure(found.drop, 1)} points of logit that forgetting takes from its images (mean of ${counted(found.images)}):`),
      table(["part of the network", "share"], parts, `Parts that the logit of ${this.names} is taken in${this.suffix}`),
      ...(units.length ? [table(["largest single units", "share"], units, `Units that the logit of ${this.names} is taken by${this.suffix}`)] : []));
  }

  showRecount() {
    const { data, classes } = this;
    const told = classes.length === 1 ? data.recount?.classes.find((entry) => entry.class === classes[0]) : null;
    if (told) this.fill("recount", sentences(told.sentences));
    else if (!data.recount) this.fill("recount", missing("No sentences were written when this run was explained.", ...this.explain));
    else this.fill("recount");
  }
}

/** Rows of the chart: the classes that are predicted most, and one for all others. */
function flowRows(shares, names) {
  const maps = shares.map((row) => row && new Map(row));
  const most = (c) => Math.max(...maps.map((map) => map?.get(c) ?? 0));
  const every = [...new Set(maps.flatMap((map) => (map ? [...map.keys()] : [])))].sort((a, b) => most(b) - most(a) || a - b);
  const shown = every.slice(0, every.length > ROWS + 1 ? ROWS : ROWS + 1);
  const rows = shown.flatMap((c) => maps.flatMap((map, k) => (map ? [{ class: names[c], network: NETWORKS[k], share: map.get(c) ?? 0 }] : [])));
  const rest = maps.map((map) => map && Math.max(0, 1 - shown.reduce((sum, c) => sum + (map.get(c) ?? 0), 0)));
  if (rest.some((share) => share > 5e-4)) {
    rows.push(...rest.flatMap((share, k) => (share == null ? [] : [{ class: "all others", network: NETWORKS[k], share }])));
  }
  return rows;
}

/** Sentences whose figures say, when pointed at, where in explanation.json they stand. */
function sentences(told) {
  return el("div", { class: "recount" }, told.map(({ text, values }) => {
    const paragraph = el("p");
    let from = 0;
    for (const { shown, path } of values) {
      const at = text.indexOf(shown, from);
      if (at < 0) continue;
      paragraph.append(text.slice(from, at), el("data", { value: path, title: path }, shown));
      from = at + shown.length;
    }
    paragraph.append(text.slice(from));
    return paragraph;
  }));
}

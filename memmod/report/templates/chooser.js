// The choice of classes: a radio button for each, or a check box where several are forgotten at once.

const FIND_FROM = 24;  // more classes than this get a field to find one
const KNOWN = 40;      // of the sets that were measured, so many are offered

class Chooser {
  constructor(form, data, number, changed) {
    Object.assign(this, { form, data, changed });
    this.box = form.querySelector(".choices");
    this.several = form.querySelector(".several input");
    this.inputs = data.names.map((name, c) => el("input", { type: "radio", name: `forget-${number}`, value: c }));
    this.labels = this.inputs.map((input, c) => el("label", { class: "choice" }, input, el("span", {}, data.names[c])));
    this.box.append(...this.labels);
    form.addEventListener("submit", (event) => event.preventDefault());
    this.box.addEventListener("change", () => this.tell());
    this.several.addEventListener("change", () => {
      this.mode(this.several.checked);
      this.tell();
    });
    this.finder();
    this.known();
  }

  get classes() {
    return this.inputs.flatMap((input, c) => (input.checked ? [c] : []));
  }

  choose(classes) {
    this.several.checked = classes.length > 1;
    this.mode(classes.length > 1);
    this.inputs.forEach((input, c) => { input.checked = classes.includes(c); });
    this.tell();
  }

  tell() {
    if (this.classes.length) this.changed(this.classes);
  }

  mode(several) {
    const first = this.classes[0];
    for (const input of this.inputs) {
      const checked = input.checked;
      input.type = several ? "checkbox" : "radio";
      input.checked = checked;
    }
    if (!several && first !== undefined) this.inputs[first].checked = true;
  }

  finder() {
    const label = this.form.querySelector(".filter");
    label.hidden = this.inputs.length <= FIND_FROM;
    label.querySelector("input").addEventListener("input", (event) => {
      const wanted = event.target.value.trim().toLowerCase();
      this.labels.forEach((choice, c) => { choice.hidden = !this.data.names[c].toLowerCase().includes(wanted); });
    });
  }

  /** Buttons for sets that were measured. */
  known() {
    const sets = [...this.data.measured, ...(this.data.flows?.sets ?? [])].map((found) => found.classes);
    const distinct = sets.filter((set, k) => set.length > 1 && sets.findIndex((other) => same(set, other)) === k);
    const box = this.form.querySelector(".known");
    box.hidden = !distinct.length;
    box.querySelector("div").append(...distinct.slice(0, KNOWN).map((set) =>
      el("button", { type: "button", onclick: () => this.choose(set) }, set.map((c) => this.data.names[c]).join(" + "))));
  }
}

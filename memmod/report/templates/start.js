// Every run of the page comes to life.

function start(root, number) {
  const data = JSON.parse(root.querySelector("script.data").textContent);
  const drawn = [drawAll(root, data)];
  const section = root.querySelector(".selection");
  if (section) {
    section.hidden = false;
    const selection = new Selection(section, data);
    if (data.fixed) {
      drawn.push(selection.show(data.fixed));
    } else {
      const wanted = fromAddress(number, data.names.length);
      let chosen = false;
      const chooser = new Chooser(section.querySelector(".chooser"), data, number, (classes) => {
        drawn.push(selection.show(classes));
        if (chosen) history.replaceState(null, "", `#${number}=${classes.join(",")}`);
      });
      chooser.choose(wanted ?? [0]);
      chosen = true;
    }
  }
  return Promise.all(drawn);
}

/** Classes named by the address, as #1=3,5: so that a choice can be sent on. */
function fromAddress(number, classes) {
  const found = new RegExp(`^#${number}=(\\d+(?:,\\d+)*)$`).exec(location.hash);
  const chosen = found ? [...new Set(found[1].split(",").map(Number))].filter((c) => c < classes) : [];
  return chosen.length ? chosen : null;
}

Promise.all([...document.querySelectorAll(".run")].map((root, place) => start(root, place + 1)))
  .then(() => { document.documentElement.dataset.ready = "yes"; });

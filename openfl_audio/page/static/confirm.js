// A question before anything is changed, and what came of it.

import { post } from "/static/api.js";
import { h, setText } from "/static/dom.js";

// Ask, and make the request if the answer is yes. Resolves to whether it was made.
export function confirmed(page, { question, effect, yes, path, done }) {
  return new Promise((resolve) => {
    const alert = h("p", { role: "alert", class: "alert" });
    const no = h("button", { type: "button", autofocus: true }, "Cancel");
    const go = h("button", { type: "button", class: "danger" }, yes);
    const dialog = h(
      "dialog",
      { "aria-labelledby": "question" },
      h("h2", { id: "question" }, question),
      h("p", {}, effect),
      alert,
      h("p", { class: "buttons" }, no, go),
    );
    let made = false;
    no.addEventListener("click", () => dialog.close());
    go.addEventListener("click", async () => {
      go.disabled = true;
      try {
        await post(path);
        made = true;
        page.say(done);
        dialog.close();
      } catch (refusal) {
        setText(alert, refusal.message);
        go.disabled = false;
      }
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      // The button that asked may be gone by now, and the keyboard must not begin anew at the top.
      if (document.activeElement === document.body) document.querySelector("#main h1")?.focus();
      resolve(made);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

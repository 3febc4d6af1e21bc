// Login by a token that `openfl-audio page` prints. It comes behind a #, which browsers keep from servers and logs.

import { post } from "/static/api.js";
import { h, setText } from "/static/dom.js";

export function loginPage(main, page, { next, reason }) {
  const alert = h("p", { role: "alert", class: "alert" }, reason);
  const token = h("input", { id: "token", name: "token", autocomplete: "off", spellcheck: "false", required: true });
  const button = h("button", { type: "submit", class: "primary" }, "Log in");
  const form = h("form", {}, h("label", { for: "token" }, "Token"), token, button);
  const logIn = async (value) => {
    button.disabled = true;
    try {
      await post("/api/login", { token: value });
      page.go(next);
    } catch (refusal) {
      setText(alert, refusal.message);
    } finally {
      button.disabled = false;
    }
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    logIn(token.value.trim());
  });
  main.append(
    h(
      "div",
      { class: "login" },
      h("h1", { tabindex: -1 }, "Log in"),
      h("p", {}, "Run this where your certificate is, and open the address that it prints, or paste its token here:"),
      h("pre", {}, "openfl-audio page --director HOST:PORT --user NAME"),
      form,
      alert,
    ),
  );
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    history.replaceState(null, "", "/login");
    logIn(given);
  }
}

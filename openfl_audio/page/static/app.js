// The page: its session, its addresses, and what is shown at each of them.

import { follow, get, post, Refusal } from "/static/api.js";
import { h, setText, show } from "/static/dom.js";
import { experimentPage } from "/static/experiment.js";
import { experimentsPage } from "/static/experiments.js";
import { federationPage } from "/static/federation.js";
import { loginPage } from "/static/login.js";

const main = document.getElementById("main");
const nav = document.querySelector("nav");
let leave = () => {};

export const page = {
  session: null,
  go(address) {
    history.pushState(null, "", address);
    route();
    main.focus();  // what had the focus is gone
  },
  say(sentence) {
    setText(document.getElementById("said"), sentence);
  },
  trouble(sentence) {
    const banner = document.getElementById("trouble");
    setText(banner, sentence);
    banner.classList.toggle("shown", sentence !== "");
  },
  // Events are asked for by one stream at a time: browsers open six connections to a host at most.
  follow(path, handlers) {
    const end = (refusal) => {
      if (refusal.status === 401) toLogin(refusal.message ?? refusal.error);
      else (handlers.end ?? fail)(refusal);
    };
    return follow(path, { ...handlers, end }, page.trouble);
  },
  fail,
};

function fail(refusal) {
  page.trouble("");
  main.replaceChildren(h("h1", { tabindex: -1 }, "Not found"), h("p", {}, refusal.error ?? refusal.message));
}

function toLogin(reason) {
  page.session = null;
  const next = location.pathname === "/login" ? "/" : location.pathname;
  history.replaceState(null, "", "/login");
  draw(loginPage, { next, reason });
}

function draw(make, ...about) {
  leave();
  leave = () => {};
  page.trouble("");
  main.replaceChildren();
  show(nav, page.session !== null);
  show(document.querySelector(".who"), page.session !== null);
  for (const anchor of nav.querySelectorAll("a")) {
    const isHere = new URL(anchor.href).pathname === location.pathname;
    isHere ? anchor.setAttribute("aria-current", "page") : anchor.removeAttribute("aria-current");
  }
  leave = make(main, page, ...about) ?? leave;
  const heading = main.querySelector("h1");
  document.title = heading ? `${heading.textContent} – openfl-audio` : "openfl-audio";
}

async function route() {
  const parts = location.pathname.split("/").filter(Boolean);
  if (parts[0] === "login") return draw(loginPage, { next: "/", reason: "" });
  try {
    page.session ??= await get("/api/session");
  } catch (refusal) {
    if (refusal instanceof Refusal && refusal.status === 401) return toLogin("");
    page.trouble(`${refusal.message}: trying again`);
    return setTimeout(route, 2000);
  }
  setText(document.getElementById("who"), `${page.session.role} ${page.session.name}`);
  if (parts.length === 0) draw(federationPage);
  else if (parts.length === 1) draw(experimentsPage);
  else draw(experimentPage, decodeURIComponent(parts[1]));
}

// To the browser even a place of this page is another address, for which the page would be drawn anew.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
document.addEventListener("click", (event) => {
  const anchor = event.target.closest("a");
  const isPlain = event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;
  if (!anchor || !isPlain || anchor.hasAttribute("download") || anchor.origin !== location.origin || anchor.hash) return;
  event.preventDefault();
  page.go(anchor.pathname);
});
document.getElementById("logout").addEventListener("click", async () => {
  await post("/api/logout").catch(() => {});
  toLogin("You are logged out.");
});
addEventListener("popstate", route);
addEventListener("hashchange", () => location.pathname === "/login" && route());
route();

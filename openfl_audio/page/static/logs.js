// The end of what tasks printed on an envoy, while somebody looks at it.

import { get } from "/static/api.js";
import { h, setText, show } from "/static/dom.js";

const LOOK_MS = 2000;

export class LogTail {
  constructor(path) {
    this.path = path;
    this.envoys = h("select", { id: "log-of" });
    this.lines = h("pre", { class: "log", tabindex: 0, "aria-label": "Log", "data-test": "log" });
    this.node = h(
      "details",
      { hidden: true },
      h("summary", {}, "Logs"),
      h("p", { class: "filters" }, h("label", { for: "log-of" }, "Envoy"), this.envoys),
      this.lines,
    );
    this.node.addEventListener("toggle", () => this.look());
    this.envoys.addEventListener("change", () => this.look());
  }

  update(envoys) {
    show(this.node, envoys.length > 0);
    if (this.names === envoys.join()) return;
    this.names = envoys.join();
    const chosen = this.envoys.value;
    this.envoys.replaceChildren(...envoys.map((name) => h("option", { value: name }, name)));
    if (envoys.includes(chosen)) this.envoys.value = chosen;
  }

  async look() {
    clearTimeout(this.timer);
    if (!this.node.open || !this.node.isConnected) return;
    const envoy = this.envoys.value;
    try {
      const { text } = await get(`${this.path}/logs/${encodeURIComponent(envoy)}`);
      if (envoy === this.envoys.value) this.draw(text);
    } catch (refusal) {
      this.draw(refusal.message);
    }
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.look(), LOOK_MS);
  }

  draw(text) {
    const { lines } = this;
    const isAtEnd = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 20;
    setText(lines, text || "This envoy's site lets no log leave, or its tasks have printed nothing.");
    if (isAtEnd) lines.scrollTop = lines.scrollHeight;
  }

  leave() {
    clearTimeout(this.timer);
  }
}

// Requests to this page's own server.

export class Refusal extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

export async function get(path) {
  return answer(await fetch(path, { headers: { Accept: "application/json" } }));
}

export async function post(path, content = {}) {
  const headers = { "Content-Type": "application/json" };
  return answer(await fetch(path, { method: "POST", headers, body: JSON.stringify(content) }));
}

async function answer(response) {
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refusal(response.status, content.error ?? `the page answers with ${response.status}`);
  return content;
}

// Events of the server, for as long as the page is visible: `handlers` by name, `end` for a refusal.
export function follow(path, handlers, trouble) {
  let source = null;
  const close = () => {
    source?.close();
    source = null;
  };
  const open = () => {
    if (source || document.hidden) return;
    source = new EventSource(path);
    for (const name of Object.keys(handlers)) {
      source.addEventListener(name, (event) => {
        const content = JSON.parse(event.data);
        if (name === "end") close();
        trouble("");
        handlers[name](content);
      });
    }
    source.addEventListener("trouble", (event) => trouble(JSON.parse(event.data)));
    source.addEventListener("error", async () => {
      if (source?.readyState !== EventSource.CLOSED) {
        trouble("the connection to the page is lost: trying again");
        return;
      }
      close();
      try {
        await get("/api/session");
        handlers.end({ status: 404, error: "there is no such experiment, or it is another user's" });
      } catch (refusal) {
        if (refusal instanceof Refusal && refusal.status === 401) handlers.end({ status: 401, error: refusal.message });
        else {
          trouble("the page cannot be reached: trying again");
          setTimeout(open, 2000);
        }
      }
    });
  };
  const onVisibility = () => (document.hidden ? close() : open());
  document.addEventListener("visibilitychange", onVisibility);
  open();
  return () => {
    document.removeEventListener("visibilitychange", onVisibility);
    close();
  };
}

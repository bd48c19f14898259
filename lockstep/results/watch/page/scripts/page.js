// One page at a time: its part of the document, and all that it has begun, which ends with it.

const NEVER = new Promise(() => {});

export class Page {
  #over = new AbortController();

  // Each page is a copy of its template: what belongs to another page cannot reach this one's elements.
  constructor(template) {
    this.root = document.getElementById(template).content.firstElementChild.cloneNode(true);
    document.body.append(this.root);
    this.showConnection(true);
  }

  $(id) {
    return this.root.querySelector(`#${id}`);
  }

  get isOver() {
    return this.#over.signal.aborted;
  }

  close() {
    this.#over.abort();
    this.root.remove();
  }

  // Resolves with the JSON of an answer. Once the page has ended it never does, not even with an error: whoever waits
  // for it is forgotten, and has nothing to check.
  async ask(path, options) {
    try {
      const answer = await fetch(path, { ...options, signal: this.#over.signal });
      if (!answer.ok) throw Object.assign(new Error((await answer.text()).trim() || answer.statusText), { code: answer.status });
      const found = await answer.json();
      return this.isOver ? NEVER : found;
    } catch (error) {
      return this.isOver ? NEVER : Promise.reject(error);
    }
  }

  // Resolves after a while, and never once the page has ended.
  pause(milliseconds) {
    return new Promise((done) => {
      setTimeout(() => { if (!this.isOver) done(); }, milliseconds);
    });
  }

  on(target, name, handler) {
    target.addEventListener(name, handler, { signal: this.#over.signal });
  }

  // Calls `handler` with each message that the server sends, until the page ends.
  follow(path, name, handler) {
    const stream = new EventSource(path);
    this.#over.signal.addEventListener("abort", () => stream.close());
    this.on(stream, name, (event) => handler(JSON.parse(event.data)));
    this.on(stream, "open", () => this.showConnection(true));
    this.on(stream, "error", () => this.showConnection(false));
  }

  showConnection(isThere) {
    document.getElementById("connection").hidden = isThere;
  }
}

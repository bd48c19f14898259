// One page at a time: its part of the document, and all that it has begun, which ends with it.

const NEVER = new Promise(() => {});

const FOLLOW_MS = 300;

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
      if (!answer.ok) throw new Error((await answer.text()).trim() || answer.statusText);
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

  // Asks again and again, and calls `handler` with each answer that is not the one before, until the page ends. If there
  // is nothing at first, it calls `onMissing` instead.
  async follow(path, handler, onMissing) {
    for (let tag = ""; !this.isOver; await this.pause(FOLLOW_MS)) {
      const answer = await fetch(path, { headers: { "If-None-Match": tag }, signal: this.#over.signal }).catch(() => null);
      if (this.isOver) return;
      if (answer?.status === 404 && !tag) return onMissing();
      this.showConnection(Boolean(answer?.ok) || answer?.status === 304);
      const found = answer?.ok ? await answer.json().catch(() => null) : null;
      if (this.isOver) return;
      if (found === null) continue;
      tag = answer.headers.get("ETag");
      handler(found);
    }
  }

  showConnection(isThere) {
    document.getElementById("connection").hidden = isThere;
  }
}

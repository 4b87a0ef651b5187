/** Server-sent events out of chunks of text (WHATWG HTML, section 9.2.6). Pure. */

export interface Message {
  event: string;
  data: string;
  id: string | null;
}

export class SseParser {
  #rest = "";
  #event = "";
  #data: string[] = [];
  #id: string | null = null;

  /** The messages this chunk completes; comments complete none. */
  feed(chunk: string): Message[] {
    const messages: Message[] = [];
    const text = this.#rest + chunk;
    // A lone CR at the end may be half of CRLF: it waits for the next chunk.
    const usable = text.endsWith("\r") ? text.slice(0, -1) : text;
    const lines = usable.split(/\r\n|\n|\r/);
    this.#rest = (lines.pop() ?? "") + text.slice(usable.length);
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length > 0 || this.#event) {
          messages.push({ event: this.#event || "message", data: this.#data.join("\n"), id: this.#id });
        }
        this.#event = "";
        this.#data = [];
        this.#id = null;
        continue;
      }
      const colon = line.indexOf(":");
      if (colon === 0) continue;
      const field = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (field === "event") this.#event = value;
      else if (field === "data") this.#data.push(value);
      else if (field === "id") this.#id = value;
    }
    return messages;
  }
}

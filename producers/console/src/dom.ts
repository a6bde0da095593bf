// A few words for building elements.

type Child = Node | string | null | false;

type Attributes = Record<string, string | boolean | null | ((event: Event) => void)>;

/** An element with attributes (functions become listeners) and children. */
export function el(tag: string, attributes: Attributes = {}, ...children: Child[]): HTMLElement {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (typeof value === "string") element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== false));
  return element;
}

export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no #${id}`);
  return element as T;
}

export function table(caption: string, headers: string[], rows: HTMLElement[]): HTMLElement {
  const head = el("tr", {}, ...headers.map((text) => el("th", { scope: "col" }, text)));
  return el("table", { "aria-label": caption }, el("thead", {}, head), el("tbody", {}, ...rows));
}

export function cells(...contents: (Child | Child[])[]): HTMLElement[] {
  return contents.map((content) => el("td", {}, ...(Array.isArray(content) ? content : [content])));
}

export function mebibytes(bytes: number): string {
  return `${(bytes / 1024 / 1024).toFixed(bytes < 10 * 1024 * 1024 ? 2 : 0)} MiB`;
}

export function short(digest: string): string {
  return digest.slice(0, 12);
}

/** How long ago, or between two times. */
export function duration(from: string, to: string | null): string {
  const seconds = Math.max(0, ((to ? Date.parse(to) : Date.now()) - Date.parse(from)) / 1000);
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d`;
}

// Entry in the app: gr.HTML's js_on_load calls start(element, server).

import { Page } from "./page.js";

export function start(element, server) {
  const page = new Page(element.querySelector("#spo-root"), server);
  return page.open();
}

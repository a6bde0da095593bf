// Presses the console's deploy button as a person would, and waits until every node has converged.
//
//     node deploy.mjs URL-WITH-TOKEN SERVICE NODES SCREENSHOT.png
//
// Ends with status 0 and a line of JSON if all went as expected.

import { chromium } from "playwright-core";

const [url, service, nodes, screenshot] = process.argv.slice(2);
const flags = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: flags });
try {
  const page = await browser.newPage({ viewport: { width: 1400, height: 1250 } });
  const errors = [];
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  await page.goto(url);
  await page.getByText("live", { exact: true }).waitFor();
  if (page.url().includes("access_token")) throw new Error("the token stays in the address bar");

  await page.getByRole("button", { name: "Deploy…" }).first().click();
  const dialog = page.getByRole("dialog");
  await dialog.getByLabel("Service").fill("../escape");
  await dialog.getByRole("button", { name: "Deploy", exact: true }).click();
  if (!(await dialog.isVisible())) throw new Error("a service name with ../ was taken");
  await dialog.getByLabel("Service").fill(service);
  await dialog.getByLabel("region by region").check();
  await dialog.getByRole("button", { name: "Deploy", exact: true }).click();
  await dialog.waitFor({ state: "hidden" });

  const article = page.locator(`article[data-service="${service}"]`);
  await article.and(page.locator('[data-status="completed"]')).waitFor({ timeout: 120_000 });
  await page.waitForFunction(
    ([service, nodes]) =>
      document.querySelectorAll(`article[data-service="${service}"] .dot.healthy`).length === nodes,
    [service, Number(nodes)],
    { timeout: 30_000 },
  );
  await page.locator("tr[data-job] button").first().click();
  await page.waitForFunction(() => document.querySelector("#log")?.textContent?.includes("assets"), null, { timeout: 20_000 });
  await page.screenshot({ path: screenshot, fullPage: true });
  if (errors.length > 0) throw new Error(`the page reported errors: ${errors.join("; ")}`);
  console.log(JSON.stringify({ service, converged: Number(nodes) }));
} catch (error) {
  const page = browser.contexts()[0]?.pages()[0];
  await page?.screenshot({ path: screenshot, fullPage: true }).catch(() => {});
  console.error(String(error));
  process.exitCode = 1;
} finally {
  await browser.close();
}

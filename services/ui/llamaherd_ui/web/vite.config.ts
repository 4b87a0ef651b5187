import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

// Where a running ui service answers during `npm run dev`.
const UI_URL = process.env.LLAMAHERD_UI_URL ?? "http://127.0.0.1:8081";

export default defineConfig({
  plugins: [svelte()],
  // Relative, so that the app also works under a path of a reverse proxy.
  base: "./",
  build: {
    outDir: "../static",
    emptyOutDir: true,
    // All of these know CSS light-dark(), so the theme needs no second copy of the colours.
    target: ["chrome123", "firefox120", "safari17.5"],
    // A data: URL would be refused by `default-src 'self'`.
    assetsInlineLimit: 0,
  },
  server: { proxy: { "/api": UI_URL } },
});

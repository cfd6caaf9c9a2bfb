// Runs in a guest: writes what chokidar tells of the directory `src`, a line each, after "ready". `chokidar.js MODULES`.
"use strict";
const chokidar = require(`${process.argv[2]}/chokidar`);

const watcher = chokidar.watch("src", { ignoreInitial: true, usePolling: false });
watcher.on("ready", () => console.log("ready"));
watcher.on("all", (event, path) => console.log(event, path));

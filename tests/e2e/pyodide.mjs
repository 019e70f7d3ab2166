// Runs a Python file in Pyodide: node pyodide.mjs FOLDER_OF_PYODIDE REPOSITORY FILE
import { createRequire } from "node:module";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, repository, file] = process.argv.slice(2);
// versions before 0.21 have no module of their own
const entry = existsSync(join(folder, "pyodide.mjs"))
  ? await import(pathToFileURL(join(folder, "pyodide.mjs")).href)
  : createRequire(import.meta.url)(join(folder, "pyodide.js"));
const options = existsSync(join(folder, "pyodide.mjs")) ? {} : { indexURL: folder };
const pyodide = await entry.loadPyodide({ ...options, stdout: console.log, stderr: console.error });
pyodide.FS.mkdirTree("/repository");
pyodide.FS.mount(pyodide.FS.filesystems.NODEFS, { root: repository }, "/repository");
await pyodide.runPythonAsync(
  `import runpy, sys\nsys.argv = [${JSON.stringify("/repository/" + file)}]\n` +
    `runpy.run_path(sys.argv[0], run_name="__main__")\n`,
);

'use strict';
// Builds the addon: with cmake-js where CMake is present, else with node-gyp. `--gyp` and `--cmake`
// choose one; what follows `--` is handed on. Neither needs the network.

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const root = path.join(__dirname, '..');
const jobs = String(os.availableParallelism());

function hasCmake() {
  return spawnSync('cmake', ['--version'], { stdio: 'ignore' }).status === 0;
}

/** The folder of this Node's own headers, which spares node-gyp a download. */
function headersOfNode() {
  const prefix = path.join(path.dirname(fs.realpathSync(process.execPath)), '..');
  return fs.existsSync(path.join(prefix, 'include', 'node', 'node_api.h')) ? prefix : undefined;
}

/** The file a package of ours names as its command. */
function command(name) {
  const manifest = require.resolve(`${name}/package.json`);
  const { bin } = require(manifest);
  return path.join(path.dirname(manifest), typeof bin === 'string' ? bin : bin[name]);
}

function run(file, args) {
  const { status } = spawnSync(process.execPath, [file, ...args], { cwd: root, stdio: 'inherit' });
  process.exitCode = status ?? 1;
}

const [own, rest] = (() => {
  const args = process.argv.slice(2);
  const at = args.indexOf('--');
  return at < 0 ? [args, []] : [args.slice(0, at), args.slice(at + 1)];
})();

if (own.includes('--cmake') || (!own.includes('--gyp') && hasCmake())) {
  run(command('cmake-js'), ['build', '--out', 'build-cmake', '--parallel', jobs, ...rest]);
} else {
  const headers = headersOfNode();
  const nodedir = headers === undefined ? [] : [`--nodedir=${headers}`];
  run(command('node-gyp'), ['rebuild', '--jobs', jobs, ...nodedir, ...rest]);
}

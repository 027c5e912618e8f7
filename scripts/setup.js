'use strict';
// Brings a fresh clone to the point where everything runs: dependencies, native addon, compiled
// TypeScript. Does only what is missing or out of date, so it may stand before every command.
// Needs node, npm and a C++ compiler; fetches CMake, make and g++ with apt-get where they are absent.

const { spawnSync } = require('node:child_process');
const { createHash } = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');

const root = path.join(__dirname, '..');
const stamps = path.join(root, 'node_modules', '.siglip2');

function run(command, args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit' });
  if (status === 0) return;
  console.error(
    `setup: ${[command, ...args].join(' ')} failed${error ? `: ${error.message}` : ''}`,
  );
  process.exit(1);
}

function has(command) {
  return spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0;
}

/** Every file below a folder, sorted. */
function filesBelow(folder) {
  return fs
    .readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.join(entry.parentPath, entry.name))
    .sort();
}

function digest(files) {
  const hash = createHash('sha256');
  for (const file of files) hash.update(path.relative(root, file)).update(fs.readFileSync(file));
  return hash.digest('hex');
}

/** Runs `build` unless the inputs are those of the last time and one of the outputs is there. */
function upToDate(name, inputs, outputs, build) {
  const stamp = path.join(stamps, name);
  const now = digest(inputs);
  const fresh =
    fs.existsSync(stamp) &&
    fs.readFileSync(stamp, 'utf8') === now &&
    outputs.some((file) => fs.existsSync(path.join(root, file)));
  if (fresh) return;
  console.error(`setup: ${name} …`);
  build();
  fs.mkdirSync(stamps, { recursive: true });
  fs.writeFileSync(stamp, now);
}

const inRoot = (...names) => names.map((name) => path.join(root, name));

upToDate('dependencies', inRoot('package-lock.json'), ['node_modules/typescript'], () => {
  run('npm', ['ci', '--no-audit', '--no-fund', '--loglevel=error', '--ignore-scripts']);
});
upToDate(
  'native addon',
  [
    ...inRoot('CMakeLists.txt', 'binding.gyp', 'scripts/build_native.js'),
    ...filesBelow(path.join(root, 'native')),
  ],
  ['build-cmake/Release/siglip2.node', 'build/Release/siglip2.node'],
  () => {
    const missing = ['cmake', 'make', 'g++'].filter((tool) => !has(tool));
    if (missing.length > 0) installWithApt(missing);
    run(process.execPath, [path.join(root, 'scripts/build_native.js')]);
  },
);
upToDate(
  'TypeScript',
  [...inRoot('tsconfig.json', 'tsconfig.build.json'), ...filesBelow(path.join(root, 'lib'))],
  ['dist/lib/cli/main.js'],
  () => {
    run(process.execPath, [
      path.join(root, 'node_modules/typescript/bin/tsc'),
      '-p',
      path.join(root, 'tsconfig.build.json'),
    ]);
  },
);

function installWithApt(packages) {
  console.error(`setup: installing ${packages.join(', ')} …`);
  const sudo = process.getuid?.() === 0 ? [] : ['sudo'];
  const apt = (...args) => {
    const [command, ...rest] = [...sudo, 'apt-get', '-qq', ...args];
    run(command, rest);
  };
  apt('update');
  apt('install', '-y', ...packages);
}

'use strict';
// Formats the C++ sources in place with clang-format; `--check` only compares, and fails on a
// difference.

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const root = path.join(__dirname, '..');
const files = fs
  .readdirSync(path.join(root, 'native'), { recursive: true, encoding: 'utf8' })
  .filter((file) => /\.(h|cc|cu|cuh)$/.test(file))
  .map((file) => path.join('native', file));
const mode = process.argv.includes('--check') ? ['--dry-run', '-Werror'] : ['-i'];
const { error, status } = spawnSync('clang-format', [...mode, ...files], {
  cwd: root,
  stdio: 'inherit',
});
if (error !== undefined) {
  process.stderr.write(`format_native: clang-format must be installed, got ${error.message}\n`);
}
process.exitCode = status ?? 1;

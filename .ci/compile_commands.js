'use strict';
// The C++ sources that clang-tidy reads, one a line: every .cc file of native/ in the compile commands
// of the CMake build (it does not know nvcc's flags). A kernel source is there once per instruction set;
// one of them is enough.

const fs = require('node:fs');
const path = require('node:path');

const root = path.join(__dirname, '..');
const file = path.join(root, 'build-cmake', 'compile_commands.json');
const commands = JSON.parse(fs.readFileSync(file, 'utf8'));
const sources = new Set(commands.map((command) => path.relative(root, command.file)));
for (const source of [...sources].sort()) {
  if (source.startsWith(`native${path.sep}`) && source.endsWith('.cc')) {
    process.stdout.write(`${source}\n`);
  }
}

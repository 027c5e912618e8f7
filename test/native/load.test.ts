import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { spawnSync } from 'node:child_process';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { transformFileSync } from '@swc/core';
import { addonPath, kernelOf, loadAddon } from '../../lib/native/load';

// The loader as it is installed: compiled, in a package without a build.
const root = mkdtempSync(join(tmpdir(), 'siglip2-load-'));
const cmake = join(root, 'build-cmake', 'Release', 'siglip2.node');
const gyp = join(root, 'build', 'Release', 'siglip2.node');

beforeAll(() => {
  writeFileSync(join(root, 'package.json'), '{"name": "siglip2"}');
  for (const file of ['errors', 'native/load', 'native/kernels', 'native/spec']) {
    const { code } = transformFileSync(join(__dirname, '..', '..', 'lib', `${file}.ts`), {
      jsc: { parser: { syntax: 'typescript' }, target: 'es2022' },
      module: { type: 'commonjs' },
    });
    const target = join(root, 'dist', 'lib', `${file}.js`);
    mkdirSync(join(target, '..'), { recursive: true });
    writeFileSync(target, code);
  }
});
afterAll(() => {
  rmSync(root, { recursive: true });
});

function load(binding?: string): string {
  const script = `
    const { addonPath } = require(${JSON.stringify(join(root, 'dist/lib/native/load.js'))});
    try { console.log(addonPath()) } catch (e) { console.log(e.name, e.code, e.message) }`;
  const env = { ...process.env };
  delete env.SIGLIP2_BINDING;
  if (binding !== undefined) env.SIGLIP2_BINDING = binding;
  return spawnSync(process.execPath, ['-e', script], { encoding: 'utf8', env }).stdout.trim();
}

function place(path: string): void {
  mkdirSync(join(path, '..'), { recursive: true });
  cpSync(addonPath(), path);
}

test('a failure lists every attempt with its reason, and the remedy', () => {
  mkdirSync(join(gyp, '..'), { recursive: true });
  writeFileSync(gyp, 'no binary');
  const script = join(root, 'other.js');
  writeFileSync(script, 'module.exports = {}');
  const lines = load(script).split('\n');
  expect(lines[0]).toBe(
    'SiglipError ERR_BINDING addon: siglip2.node must load, got a failure at every place',
  );
  expect(lines[2]).toBe(`  ${script}: not an addon of siglip2`);
  expect(lines[3]).toBe(`  ${cmake}: no such file`);
  expect(lines[4]).toMatch(/build\/Release\/siglip2\.node: .*(file too short|invalid ELF header)/);
  expect(lines.slice(5).join(' ')).toContain('npm run build:native');
});

test('the build of node-gyp is the last choice, that of CMake before it, SIGLIP2_BINDING first', () => {
  place(gyp);
  expect(load()).toBe(gyp);
  place(cmake);
  expect(load()).toBe(cmake);
  const own = join(root, 'own.node');
  place(own);
  expect(load(own)).toBe(own);
  expect(load(join(root, 'missing.node'))).toBe(cmake);
});

test('an addon of another version is refused by its signatures', () => {
  const other = join(root, 'other-version.js');
  writeFileSync(
    other,
    `const addon = require(${JSON.stringify(addonPath())});
    const describe = () => {
      const description = addon.describe();
      description.kernels[0].arguments.pop();
      return description;
    };
    module.exports = { ...addon, describe };`,
  );
  expect(load(other)).toMatch(/^SiglipError ERR_BINDING addon: \w+ must have the arguments \(/);
  expect(load(other)).toContain('npm run build:native');
});

test('kernels are found by name', () => {
  const { kernels } = loadAddon().describe();
  kernels.forEach(({ name, arguments: list }, index) => {
    expect(kernelOf(name as 'fill')).toEqual({ index, arguments: list });
  });
  expect(() => kernelOf('nonsense' as 'fill')).toThrow('kernels must include nonsense');
});

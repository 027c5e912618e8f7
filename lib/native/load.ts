// Finds and loads the addon. Every attempt is kept, so that a failure explains itself.
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { SiglipError } from '../errors';
import type { Addon } from './addon';
import type { ArgumentSignature, KernelName } from './kernels';
import { KERNEL_SIGNATURES } from './kernels';

/** A kernel of the loaded addon. */
export interface Kernel {
  /** Its number in the addon. */
  readonly index: number;
  /** Its arguments in C++ order, scratch included. */
  readonly arguments: readonly ArgumentSignature[];
}

interface Loaded {
  readonly addon: Addon;
  readonly path: string;
  readonly kernels: ReadonlyMap<string, Kernel>;
}

let loaded: Loaded | undefined;

/**
 * The native addon, loaded on the first call: from the path in `SIGLIP2_BINDING` when that is set,
 * else from the build folder of CMake, else from that of node-gyp.
 *
 * @throws ERR_BINDING when none can be loaded; the message lists every attempt and the remedy.
 * @throws ERR_ARGUMENT when `SIGLIP2_ISA` or `SIGLIP2_THREADS` has a value that cannot be used.
 */
export function loadAddon(): Addon {
  return load().addon;
}

/** The file the addon was loaded from; loads it as {@link loadAddon} does. */
export function addonPath(): string {
  return load().path;
}

/**
 * Number and signature of a kernel in the loaded addon.
 *
 * @throws ERR_BINDING when the addon lacks it.
 */
export function kernelOf(name: KernelName): Kernel {
  const kernel = load().kernels.get(name);
  if (kernel !== undefined) return kernel;
  throw new SiglipError('ERR_BINDING', `addon: kernels must include ${name}, got another list`);
}

function load(): Loaded {
  if (loaded !== undefined) return loaded;
  const { addon, path } = firstThatLoads(candidates());
  addon.initialize(SiglipError);
  const kernels = new Map<string, Kernel>();
  addon.describe().kernels.forEach((kernel, index) => {
    kernels.set(kernel.name, { index, arguments: kernel.arguments });
  });
  expectSignatures(kernels);
  loaded = { addon, path, kernels };
  return loaded;
}

function candidates(): readonly string[] {
  const chosen = process.env.SIGLIP2_BINDING ?? '';
  const root = packageRoot();
  const built = ['build-cmake', 'build'].map((folder) =>
    join(root, folder, 'Release', 'siglip2.node'),
  );
  return chosen === '' ? built : [resolve(chosen), ...built];
}

// The compiled files lie deeper than the sources, so the root is found and not counted.
function packageRoot(): string {
  let folder = __dirname;
  while (!isPackageRoot(folder)) {
    const parent = dirname(folder);
    if (parent === folder) return __dirname;
    folder = parent;
  }
  return folder;
}

function isPackageRoot(folder: string): boolean {
  const file = join(folder, 'package.json');
  if (!existsSync(file)) return false;
  const content: unknown = JSON.parse(readFileSync(file, 'utf8'));
  return (
    typeof content === 'object' &&
    content !== null &&
    'name' in content &&
    content.name === 'siglip2'
  );
}

function firstThatLoads(paths: readonly string[]): Pick<Loaded, 'addon' | 'path'> {
  const attempts: string[] = [];
  for (const path of paths) {
    try {
      return { addon: open(path), path };
    } catch (error) {
      attempts.push(`  ${path}: ${reasonOf(error)}`);
    }
  }
  throw new SiglipError(
    'ERR_BINDING',
    [
      'addon: siglip2.node must load, got a failure at every place',
      'tried:',
      ...attempts,
      'to do: run `npm run build:native` in the package (it needs a C++17 compiler, and CMake or Python),',
      'or set SIGLIP2_BINDING to the path of a siglip2.node built elsewhere.',
    ].join('\n'),
  );
}

function open(path: string): Addon {
  if (!existsSync(path)) throw new Error('no such file');
  const module: unknown = require(path);
  if (!isAddon(module)) throw new Error('not an addon of siglip2');
  return module;
}

// The one place where untyped code enters. Its kernels are compared with the generated signatures
// before use.
function isAddon(module: unknown): module is Addon {
  return (
    typeof module === 'object' &&
    module !== null &&
    [
      'initialize',
      'describe',
      'openDevice',
      'scratchBytes',
      'prepareImages',
      'firstNotFinite',
      'expectJob',
      'Buffer',
      'Program',
      'MappedFile',
      'ncclId',
      'Nccl',
    ].every((name) => typeof (module as Record<string, unknown>)[name] === 'function')
  );
}

// By form and not by class: an error of the loader may come from another realm.
function reasonOf(error: unknown): string {
  const isError = typeof error === 'object' && error !== null && 'message' in error;
  return String(isError ? error.message : error).split('\n')[0] ?? '';
}

function expectSignatures(kernels: ReadonlyMap<string, Kernel>): void {
  for (const [name, expected] of Object.entries(KERNEL_SIGNATURES)) {
    const actual = kernels.get(name)?.arguments ?? [];
    if (text(actual) !== text(expected)) {
      throw new SiglipError(
        'ERR_BINDING',
        `addon: ${name} must have the arguments (${text(expected)}), got (${text(actual)})\n` +
          'to do: the build is of another version; run `npm run build:native`.',
      );
    }
  }
}

function text(signature: readonly ArgumentSignature[]): string {
  return signature.map(({ name, kind }) => `${kind} ${name}`).join(', ');
}

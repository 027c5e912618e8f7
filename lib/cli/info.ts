// `siglip2 info`: what the addon runs on, and what a model folder holds.
import { Command } from 'commander';
import { cpus, totalmem } from 'node:os';
import { resolveDevice } from '../array';
import { parameterCount, parameterTable } from '../model';
import type { NativeCuda } from '../native/addon';
import { loadAddon } from '../native/load';
import { hubCacheDir, readModelConfig, resolveCheckpoint } from '../weights';
import { MODEL_HELP } from './model';

interface Options {
  readonly model?: string;
  readonly json?: boolean;
}

/** The command. */
export function infoCommand(): Command {
  return new Command('info')
    .description('show the device, the build and the cache, or describe a model')
    .option('-m, --model <model>', MODEL_HELP)
    .option('--json', 'as JSON')
    .action(info);
}

async function info({ model, json }: Options): Promise<void> {
  const facts = {
    ...machine(),
    ...(model === undefined ? {} : { model: await describeModel(model) }),
  };
  if (json === true) {
    process.stdout.write(`${JSON.stringify(facts, null, 2)}\n`);
    return;
  }
  process.stdout.write(lines(facts, ''));
}

function machine(): Record<string, unknown> {
  const { isa, threads, kernels, cuda } = loadAddon().describe();
  const { device, reason } = resolveDevice('auto');
  return {
    device,
    deviceReason: reason,
    processor: cpus().at(0)?.model ?? 'unknown',
    memory: gib(totalmem()),
    instructionSet: isa,
    threads,
    kernels: kernels.length,
    cuda: describeCuda(cuda),
    cache: hubCacheDir(),
    node: process.version,
  };
}

const gib = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(1)} GiB`;

function describeCuda({ built, driver, runtime, devices, missing, nccl }: NativeCuda): object {
  return {
    kernels: built ? `built with CUDA ${runtime ?? ''}` : 'none in this build',
    driver: driver === undefined ? 'none found' : `for CUDA ${driver}`,
    ...Object.fromEntries(
      devices.map((device) => [
        `cuda:${String(device.index)}`,
        {
          name: device.name,
          capability: (device.architecture / 10).toFixed(1),
          memory: gib(device.memoryBytes),
          free: freeMemory(device),
          multiprocessors: device.multiprocessors,
        },
      ]),
    ),
    // Of no use but to several ranks on GPUs.
    nccl: nccl.version ?? { missing: [nccl.missing ?? 'not found'] },
    ...(missing.length === 0 ? {} : { missing }),
  };
}

// A device that is there may still refuse us.
function freeMemory(device: NativeCuda['devices'][number]): string {
  try {
    return gib(device.freeBytes);
  } catch (error) {
    return `unknown: ${error instanceof Error ? error.message : String(error)}`;
  }
}

// A description downloads nothing: a hub id must be in the cache.
async function describeModel(source: string): Promise<Record<string, unknown>> {
  const { path: folder, revision } = await resolveCheckpoint(source, { offline: true }, 'info');
  const config = await readModelConfig(folder);
  const parameters = parameterCount(parameterTable(config));
  return { folder, ...(revision === undefined ? {} : { revision }), parameters, ...config };
}

// What is missing is told as it is, in lines.
function lines(facts: object, indent: string): string {
  return Object.entries(facts)
    .map(([key, value]: [string, unknown]) => {
      if (key === 'missing' && Array.isArray(value)) {
        const notes = (value as string[]).flatMap((note) => note.split('\n'));
        return `${indent}${key}\n${notes.map((line) => `${indent}  ${line}\n`).join('')}`;
      }
      return typeof value === 'object' && value !== null
        ? `${indent}${key}\n${lines(value, `${indent}  `)}`
        : `${indent}${key.padEnd(18 - indent.length)} ${String(value)}\n`;
    })
    .join('');
}

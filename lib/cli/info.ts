// `siglip2 info`: what the addon runs on, and what a model folder holds.
import { Command } from 'commander';
import { cpus, totalmem } from 'node:os';
import { parameterCount, parameterTable } from '../model';
import { loadAddon } from '../native/load';
import { readModelConfig } from '../weights';

interface Options {
  readonly model?: string;
  readonly json?: boolean;
}

/** The command. */
export function infoCommand(): Command {
  return new Command('info')
    .description('show the device and the build, or describe a model folder')
    .option('-m, --model <folder>', 'model folder in Hugging Face layout')
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
  const { isa, threads, kernels } = loadAddon().describe();
  return {
    device: 'cpu',
    processor: cpus().at(0)?.model ?? 'unknown',
    memory: `${(totalmem() / 2 ** 30).toFixed(1)} GiB`,
    instructionSet: isa,
    threads,
    kernels: kernels.length,
    node: process.version,
    cuda: 'no CUDA kernels in this build',
  };
}

async function describeModel(folder: string): Promise<Record<string, unknown>> {
  const config = await readModelConfig(folder);
  const count = parameterCount(parameterTable(config));
  return { folder, parameters: count, ...config };
}

function lines(facts: object, indent: string): string {
  return Object.entries(facts)
    .map(([key, value]: [string, unknown]) =>
      typeof value === 'object' && value !== null
        ? `${indent}${key}\n${lines(value, `${indent}  `)}`
        : `${indent}${key.padEnd(18 - indent.length)} ${String(value)}\n`,
    )
    .join('');
}

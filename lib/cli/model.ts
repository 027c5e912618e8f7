// The model of a command: a folder, or a hub id that is downloaded while a line tells how far it is.
import type { Command } from 'commander';
import { Option } from 'commander';
import type { Device } from '../array';
import type { LoadOptions } from '../embed';
import { Siglip2 } from '../embed';
import type { Precision } from '../ops';
import { precisions } from '../ops';
import { resolveCheckpoint } from '../weights';
import { downloadLine } from './download_line';

/** Said of `--model` by every command. */
export const MODEL_HELP = 'model folder in Hugging Face layout, or a hub id owner/name[@revision]';

/** What {@link withModel} adds to the options of a command. */
export interface ModelOptions {
  readonly model: string;
  readonly precision: Precision;
  readonly device: 'auto' | Device;
}

/** Said of `--device` by every command. */
export const DEVICE_HELP = 'auto, cpu, cuda or cuda:<n>; auto is a GPU where there is one';

/** The command with options that say which model it loads, and how. */
export function withModel(command: Command): Command {
  return command
    .requiredOption('-m, --model <model>', MODEL_HELP)
    .addOption(
      new Option('--precision <precision>', 'in what the model computes; int8 on the CPU only')
        .choices(precisions)
        .default('float32' satisfies Precision),
    )
    .option('--device <device>', DEVICE_HELP, 'auto');
}

/** `Siglip2.load` with a live line on standard error. */
export async function loadModel(
  { model, precision, device }: ModelOptions,
  options: LoadOptions = {},
): Promise<Siglip2> {
  return Siglip2.load(model, { onProgress: downloadLine(), precision, device, ...options });
}

/** The folder of a model, for a command that needs it before the model; a live line as {@link loadModel}. */
export async function modelFolder(source: string): Promise<string> {
  return (await resolveCheckpoint(source, { onProgress: downloadLine() }, 'Siglip2.load')).path;
}

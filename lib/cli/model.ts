// The model of a command: a folder, or a hub id that is downloaded while a line tells how far it is.
import type { LoadOptions } from '../embed';
import { Siglip2 } from '../embed';
import { resolveCheckpoint } from '../weights';
import { downloadLine } from './download_line';

/** Said of `--model` by every command. */
export const MODEL_HELP = 'model folder in Hugging Face layout, or a hub id owner/name[@revision]';

/** `Siglip2.load` with a live line on standard error. */
export async function loadModel(source: string, options: LoadOptions = {}): Promise<Siglip2> {
  return Siglip2.load(source, { onProgress: downloadLine(), ...options });
}

/** The folder of a model, for a command that needs it before the model; a live line as {@link loadModel}. */
export async function modelFolder(source: string): Promise<string> {
  return (await resolveCheckpoint(source, { onProgress: downloadLine() }, 'Siglip2.load')).path;
}

// Repositories for tests: a real checkpoint of a few thousand parameters, as this library writes it.
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { saveCheckpoint } from '../../../lib/weights';
import { smallConfig, smallParameters } from '../small_model';

export const HUB_ID = 'google/siglip2-tiny-patch4-14';

/** The files of a model repository: what a model needs, and what it does not. */
export async function modelFiles(
  options: { readonly maxShardBytes?: number } = {},
): Promise<Map<string, Buffer>> {
  const folder = mkdtempSync(join(tmpdir(), 'siglip2-hub-model-'));
  try {
    const config = smallConfig('fixed');
    await saveCheckpoint(folder, { config, parameters: smallParameters(config), ...options });
    const files = readdirSync(folder).map((name): [string, Buffer] => [
      name,
      readFileSync(join(folder, name)),
    ]);
    return new Map([
      ...files,
      ['.gitattributes', Buffer.from('*.safetensors filter=lfs\n')],
      ['README.md', Buffer.from('# tiny\n')],
      ['pytorch_model.bin', Buffer.from('pickled')],
      ['tokenizer_config.json', Buffer.from('{}\n')],
    ]);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The variables that lead to the hub, out of the way of a test. */
export function withoutHubVariables(): void {
  const names = [
    'HF_HOME',
    'HF_HUB_CACHE',
    'HUGGINGFACE_HUB_CACHE',
    'XDG_CACHE_HOME',
    'HF_TOKEN',
    'HUGGING_FACE_HUB_TOKEN',
    'HF_TOKEN_PATH',
    'HF_HUB_DISABLE_IMPLICIT_TOKEN',
    'HF_ENDPOINT',
    'HF_HUB_OFFLINE',
    'TRANSFORMERS_OFFLINE',
    'HF_HUB_DISABLE_SYMLINKS',
    'HF_HUB_DOWNLOAD_TIMEOUT',
  ];
  const before = new Map(names.map((name) => [name, process.env[name]]));
  beforeEach(() => {
    for (const name of names) Reflect.deleteProperty(process.env, name);
  });
  afterAll(() => {
    for (const [name, value] of before) {
      if (value === undefined) Reflect.deleteProperty(process.env, name);
      else process.env[name] = value;
    }
  });
}

// `siglip2 download`: brings a model of the hub into the shared cache.
import { Command } from 'commander';
import { downloadCheckpoint } from '../weights';
import { bytesText } from './bytes';
import { downloadLine } from './download_line';

interface Options {
  readonly revision?: string;
  readonly cache?: string;
  readonly json?: boolean;
}

/** The command. */
export function downloadCommand(): Command {
  return new Command('download')
    .description(
      'bring a model of the Hugging Face hub into the shared cache; continues where it stopped',
    )
    .argument('<id>', 'owner/name or owner/name@revision, such as google/siglip2-base-patch16-224')
    .option('-r, --revision <revision>', 'branch, tag or commit; default main')
    .option('--cache <folder>', 'default HF_HUB_CACHE, else below HF_HOME or ~/.cache/huggingface')
    .option('--json', 'as JSON')
    .action(download);
}

async function download(id: string, { revision, cache, json }: Options): Promise<void> {
  const found = await downloadCheckpoint(id, {
    ...(revision === undefined ? {} : { revision }),
    ...(cache === undefined ? {} : { cacheDir: cache }),
    onProgress: downloadLine(),
  });
  if (json === true) {
    process.stdout.write(`${JSON.stringify({ id: id.split('@')[0], ...found })}\n`);
    return;
  }
  for (const { name, bytes, fetched } of found.files) {
    const how = fetched ? 'fetched' : 'was here';
    process.stdout.write(`${bytesText(bytes).padStart(8)}  ${how.padEnd(8)}  ${name}\n`);
  }
  process.stdout.write(`commit: ${found.revision}\nfolder: ${found.path}\n`);
}

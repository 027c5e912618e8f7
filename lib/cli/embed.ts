// `siglip2 embed`: vectors of images and texts as JSON lines.
import { Command } from 'commander';
import { SiglipError } from '../errors';
import { inputFiles } from './input_files';
import { integer } from './integer';
import { loadModel, MODEL_HELP } from './model';
import { withOutput } from './output';
import { Progress } from './progress';

interface Options {
  readonly model: string;
  readonly text: readonly string[];
  readonly output?: string;
  readonly raw?: boolean;
  readonly batch: string;
}

/** The command. */
export function embedCommand(): Command {
  return new Command('embed')
    .description('write one JSON line { "image" | "text", "embedding" } per input')
    .argument('[images...]', 'image files, or folders to search for them')
    .requiredOption('-m, --model <model>', MODEL_HELP)
    .option('-t, --text <text...>', 'texts to embed', [])
    .option('-o, --output <file>', 'write there instead of to standard output')
    .option('-b, --batch <n>', 'images or texts at once', '16')
    .option('--raw', 'do not bring the embeddings to unit length')
    .action(embed);
}

async function embed(images: readonly string[], options: Options): Promise<void> {
  const files = await inputFiles(images);
  if (files.length + options.text.length === 0) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      'embed: give image files, folders or --text, got nothing',
    );
  }
  const batch = integer('batch', options.batch, 1);
  const normalize = options.raw !== true;
  const model = await loadModel(options.model);
  try {
    await withOutput(options.output, async (write) => {
      const progress = new Progress({ total: files.length + options.text.length, unit: 'inputs' });
      let done = 0;
      const run = async (
        kind: 'image' | 'text',
        inputs: readonly string[],
        embedAll: (chunk: readonly string[]) => Promise<Float32Array[]>,
      ): Promise<void> => {
        for (let first = 0; first < inputs.length; first += batch) {
          const chunk = inputs.slice(first, first + batch);
          const embeddings = await embedAll(chunk);
          for (const [i, input] of chunk.entries()) {
            await write(`${JSON.stringify({ [kind]: input, embedding: [...embeddings[i]] })}\n`);
          }
          done += chunk.length;
          progress.update(done);
        }
      };
      await run('image', files, (chunk) =>
        model.embedImages(chunk, { normalize, batchSize: batch }),
      );
      await run('text', options.text, (chunk) =>
        model.embedTexts(chunk, { normalize, batchSize: batch }),
      );
    });
  } finally {
    model.dispose();
  }
}

// `siglip2 search`: the images of a folder that fit a text or another image best; exact, every
// image is compared.
import { Command } from 'commander';
import { stat } from 'node:fs/promises';
import { imageFiles } from '../corpus';
import { SiglipError } from '../errors';
import { integer } from './integer';
import type { ModelOptions } from './model';
import { loadModel, withModel } from './model';
import { Progress } from './progress';

interface Options extends ModelOptions {
  readonly top: string;
  readonly json?: boolean;
}

const chunkSize = 64;

/** The command. */
export function searchCommand(): Command {
  const command = new Command('search')
    .description('find the images below a folder that fit a text, or an image file, best')
    .argument('<folder>', 'folder of images')
    .argument('<query>', 'a text, or the path of an image');
  return withModel(command)
    .option('-n, --top <n>', 'how many to show', '10')
    .option('--json', 'one JSON line per result')
    .action(search);
}

async function search(folder: string, query: string, options: Options): Promise<void> {
  const files = await imageFiles(folder);
  if (files.length === 0) {
    throw new SiglipError('ERR_FILE', `search: ${folder} must hold images, got none`);
  }
  const top = integer('top', options.top, 1);
  const model = await loadModel(options);
  try {
    const isImage = await isFile(query);
    const [wanted] = isImage ? await model.embedImages([query]) : await model.embedTexts([query]);
    const ranked: { image: string; cosine: number; probability?: number }[] = [];
    const progress = new Progress({ total: files.length, unit: 'images' });
    for (let first = 0; first < files.length; first += chunkSize) {
      const chunk = files.slice(first, first + chunkSize);
      const embeddings = await model.embedImages(chunk);
      for (const [i, image] of chunk.entries()) {
        const cosine = embeddings[i].reduce((sum, value, k) => sum + value * wanted[k], 0);
        // A probability is defined between an image and a text only.
        const { probability } = model.score(embeddings[i], wanted);
        ranked.push(isImage ? { image, cosine } : { image, cosine, probability });
      }
      progress.update(first + chunk.length);
    }
    ranked.sort((a, b) => b.cosine - a.cosine);
    for (const result of ranked.slice(0, top)) {
      const { image, cosine, probability } = result;
      const text =
        probability === undefined ? '' : `  ${(100 * probability).toFixed(2).padStart(6)} %`;
      process.stdout.write(
        options.json === true
          ? `${JSON.stringify(result)}\n`
          : `${cosine.toFixed(4).padStart(7)}${text}  ${image}\n`,
      );
    }
  } finally {
    model.dispose();
  }
}

async function isFile(path: string): Promise<boolean> {
  return stat(path).then(
    (found) => found.isFile(),
    () => false,
  );
}

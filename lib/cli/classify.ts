// `siglip2 classify`: how well labels fit an image.
import { Command } from 'commander';
import type { ModelOptions } from './model';
import { loadModel, withModel } from './model';

interface Options extends ModelOptions {
  readonly labels: readonly string[];
  readonly template?: string;
  readonly json?: boolean;
}

/** The command. */
export function classifyCommand(): Command {
  const command = new Command('classify')
    .description('rank labels for images; probabilities are independent of each other')
    .argument('<images...>', 'image files');
  return withModel(command)
    .requiredOption('-l, --labels <label...>', 'candidate labels')
    .option('--template <text>', 'sentence around a label, {} for the label')
    .option('--json', 'one JSON line per image')
    .action(classify);
}

async function classify(images: readonly string[], options: Options): Promise<void> {
  const model = await loadModel(options);
  try {
    for (const image of images) {
      const ranked = await model.classify(image, options.labels, {
        ...(options.template === undefined ? {} : { template: options.template }),
      });
      if (options.json === true) {
        process.stdout.write(`${JSON.stringify({ image, labels: ranked })}\n`);
        continue;
      }
      process.stdout.write(`${image}\n`);
      for (const { label, probability, logit } of ranked) {
        process.stdout.write(
          `  ${(100 * probability).toFixed(2).padStart(6)} %  ${label}  (logit ${logit.toFixed(3)})\n`,
        );
      }
    }
  } finally {
    model.dispose();
  }
}

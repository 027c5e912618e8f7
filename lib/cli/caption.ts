// `siglip2 caption` and `siglip2 ground`: what a model with a decoder writes about images.
import { Command } from 'commander';
import type { Device } from '../array';
import type { CaptionOptions } from '../embed';
import { Captioner } from '../embed';
import { downloadLine } from './download_line';
import { DEVICE_HELP } from './model';

const FOLDER_HELP = 'folder of a model with a decoder';

interface Options {
  readonly device: 'auto' | Device;
  readonly beams: string;
  readonly temperature: string;
  readonly topP: string;
  readonly seed: string;
  readonly json?: boolean;
}

function withSearch(command: Command): Command {
  return command
    .option('--beams <n>', 'sequences kept alive; 1 takes the likeliest token each time', '1')
    .option('--temperature <t>', 'above 0: draw tokens with logits divided by it', '0')
    .option('--top-p <p>', 'draw from the likeliest tokens of this probability together', '1')
    .option('--seed <n>', 'of the draws', '0')
    .option('--device <device>', DEVICE_HELP, 'auto')
    .option('--json', 'one JSON line per image');
}

/** The command. */
export function captionCommand(): Command {
  return withSearch(new Command('caption').description('write captions of images'))
    .argument('<model>', FOLDER_HELP)
    .argument('<images...>', 'image files')
    .action(caption);
}

/** The command. */
export function groundCommand(): Command {
  return withSearch(new Command('ground').description('find the box of a text in an image'))
    .argument('<model>', FOLDER_HELP)
    .argument('<image>', 'image file')
    .argument('<text>', 'what to find')
    .action(ground);
}

function searchOf({ beams, temperature, topP, seed }: Options): CaptionOptions {
  return {
    beams: Number(beams),
    temperature: Number(temperature),
    topP: Number(topP),
    seed: Number(seed),
  };
}

async function withCaptioner(
  model: string,
  { device }: Options,
  body: (captioner: Captioner) => Promise<void>,
): Promise<void> {
  const captioner = await Captioner.load(model, { onProgress: downloadLine(), device });
  try {
    await body(captioner);
  } finally {
    captioner.dispose();
  }
}

async function caption(model: string, images: readonly string[], options: Options): Promise<void> {
  await withCaptioner(model, options, async (captioner) => {
    for (const image of images) {
      const written = await captioner.caption(image, searchOf(options));
      process.stdout.write(
        options.json === true
          ? `${JSON.stringify({ image, ...written })}\n`
          : `${image}: ${written.caption}\n`,
      );
    }
  });
}

async function ground(model: string, image: string, text: string, options: Options): Promise<void> {
  await withCaptioner(model, options, async (captioner) => {
    const {
      box,
      logProbability,
      text: written,
    } = await captioner.ground(image, text, searchOf(options));
    if (options.json === true) {
      process.stdout.write(
        `${JSON.stringify({ image, text, box: box ?? null, written, logProbability })}\n`,
      );
      return;
    }
    const shown = box?.map((value) => value.toFixed(3)).join(' ');
    process.stdout.write(
      shown === undefined
        ? `${image}: no box, the decoder wrote "${written}"\n`
        : `${image}: ymin xmin ymax xmax ${shown}\n`,
    );
  });
}

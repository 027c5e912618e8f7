// What a run is trained on: corpora of pairs, and weighted streams of their rows. A plain value, so
// that it can stand in a file, travel to a worker thread and be kept with a run.
import { dirname, basename, resolve } from 'node:path';
import { z } from 'zod';
import { SiglipError } from '../errors';
import { checked, readJsonFile } from '../weights/json_file';

/** Names of the fields of a corpus; see the guide for what each may hold. */
export interface PairFields {
  /** Default `image`; in a tar file an extension, default any image's. */
  readonly image?: string | undefined;
  /** A text, or a list of texts of which one is drawn at each visit. Default `text` or `txt`. */
  readonly text?: string | undefined;
  /** Default `id` where there is one, else the file's name and the row's number. */
  readonly id?: string | undefined;
  /** Default `regions`. */
  readonly regions?: string | undefined;
  /** Language of the page. Default `language`. */
  readonly language?: string | undefined;
  /** Whatever re-weighting looks at. Default `attributes`. */
  readonly attributes?: string | undefined;
}

/** Files of pairs that are read in one way. */
export interface PairCorpus {
  /** Paths or patterns of `.jsonl`, `.tar` and `.parquet` files. */
  readonly inputs: readonly string[];
  readonly fields?: PairFields | undefined;
  /** Folder that image paths in rows start from and must stay in. Default: that of the file. */
  readonly imageRoot?: string | undefined;
  /** How a plain string in an image field is read. Default `'path'`. */
  readonly imageStrings?: 'path' | 'base64' | undefined;
  /**
   * What boxes of regions count in: shares of height and width, or pixels of the image as it is
   * decoded. Default `'relative'`.
   */
  readonly boxes?: 'relative' | 'pixels' | undefined;
  /** Whether a pair without text stays, as `<eos>` and padding alone. Default `'keep'`. */
  readonly emptyTexts?: 'keep' | 'drop' | undefined;
}

/** Rows by the value of a field; one of `in` and `notIn`. A row without the field is in no list. */
export interface RowCondition {
  readonly field: string;
  readonly in?: readonly string[] | undefined;
  readonly notIn?: readonly string[] | undefined;
}

/** Some or all rows of a corpus, and how often they are drawn. */
export interface WeightedStream {
  readonly name: string;
  /** Relative to the other streams, positive. */
  readonly weight: number;
  /** Name of the corpus. */
  readonly corpus: string;
  readonly where?: RowCondition | undefined;
}

/** Every example is drawn from one of the streams, by weight. */
export interface Mixture {
  readonly corpora: Readonly<Record<string, PairCorpus>>;
  readonly streams: readonly WeightedStream[];
}

const name = z.string('a name').min(1, 'a name that is not empty');
const names = z.array(name, 'a list of names').min(1, 'a list that is not empty');

const MIXTURE: z.ZodType<Mixture> = z.strictObject(
  {
    corpora: z.record(
      name,
      z.strictObject(
        {
          inputs: names,
          fields: z
            .strictObject(
              {
                image: name.optional(),
                text: name.optional(),
                id: name.optional(),
                regions: name.optional(),
                language: name.optional(),
                attributes: name.optional(),
              },
              'an object of image, text, id, regions, language and attributes',
            )
            .optional(),
          imageRoot: name.optional(),
          imageStrings: z.enum(['path', 'base64'], "'path' or 'base64'").optional(),
          boxes: z.enum(['relative', 'pixels'], "'relative' or 'pixels'").optional(),
          emptyTexts: z.enum(['keep', 'drop'], "'keep' or 'drop'").optional(),
        },
        'an object of inputs, fields, imageRoot, imageStrings, boxes and emptyTexts',
      ),
      'an object of corpora by name',
    ),
    streams: z
      .array(
        z.strictObject(
          {
            name,
            weight: z.number('a positive number').positive('a positive number'),
            corpus: name,
            where: z
              .strictObject(
                { field: name, in: names.optional(), notIn: names.optional() },
                'an object of field and one of in and notIn',
              )
              .refine((where) => (where.in === undefined) !== (where.notIn === undefined), {
                error: 'an object with one of in and notIn',
              })
              .optional(),
          },
          'an object of name, weight, corpus and where',
        ),
        'a list of streams',
      )
      .min(1, 'a list that is not empty'),
  },
  'an object of corpora and streams',
);

/**
 * Checks a mixture that a program made or a file holds.
 *
 * @param who - the file, or what errors call the value
 * @throws ERR_CONFIG
 */
export function checkMixture(value: unknown, who = 'mixture'): Mixture {
  const mixture = checked(MIXTURE, value, who, 'ERR_CONFIG');
  const seen = new Set<string>();
  for (const stream of mixture.streams) {
    if (!Object.hasOwn(mixture.corpora, stream.corpus)) {
      throw new SiglipError(
        'ERR_CONFIG',
        `${who}: corpus of stream ${stream.name} must be one of ` +
          `${Object.keys(mixture.corpora).join(', ')}, got ${stream.corpus}`,
      );
    }
    if (seen.has(stream.name)) {
      throw new SiglipError(
        'ERR_CONFIG',
        `${who}: names of streams must differ, got ${stream.name} twice`,
      );
    }
    seen.add(stream.name);
  }
  return mixture;
}

/**
 * Reads a mixture from a JSON file. Its paths start from the file's folder.
 *
 * @throws ERR_CONFIG for a file that is none, ERR_FILE
 * @example
 * const mixture = await readMixture('data/mixture.json');
 */
export async function readMixture(path: string): Promise<Mixture> {
  const folder = dirname(path);
  const content = await readJsonFile(folder, basename(path), 'ERR_CONFIG');
  if (content === undefined) {
    throw new SiglipError('ERR_FILE', `${path}: file must be a mixture, got nothing there`);
  }
  const mixture = checkMixture(content, path);
  const placed = Object.entries(mixture.corpora).map(([key, corpus]): [string, PairCorpus] => [
    key,
    {
      ...corpus,
      inputs: corpus.inputs.map((input) => resolve(folder, input)),
      ...(corpus.imageRoot === undefined ? {} : { imageRoot: resolve(folder, corpus.imageRoot) }),
    },
  ]);
  return { ...mixture, corpora: Object.fromEntries(placed) };
}

/**
 * The published mixture: 90 % of the pairs from English pages and 10 % from others, by the language
 * of the page and not of the caption (SigLIP 2 §2.1; No Filter, arXiv 2405.13777).
 *
 * @param english - share of English pages. Default 0.9
 * @param tags - what the language field holds for an English page. Default `['en']`
 */
export function pageLanguageMixture(
  corpus: PairCorpus,
  english = 0.9,
  tags: readonly string[] = ['en'],
): Mixture {
  const field = corpus.fields?.language ?? 'language';
  return checkMixture({
    corpora: { pages: corpus },
    streams: [
      { name: 'english', weight: english, corpus: 'pages', where: { field, in: tags } },
      { name: 'other', weight: 1 - english, corpus: 'pages', where: { field, notIn: tags } },
    ],
  });
}

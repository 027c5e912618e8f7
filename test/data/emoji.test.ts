import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import {
  completeStyles,
  emojiGroups,
  partialStyles,
  readEmoji,
  readEmojiNames,
  resolveEmojiPackage,
  type Emoji,
} from '../../lib/data/emoji';
import { decodeImage } from '../../lib/image';
import { EmojiData } from '../../lib/data/emoji_data';
import { emojiDrawings } from '../../lib/data/emoji_drawings';
import { drawnRows, iconNames, readIconSet } from '../../lib/data/emoji_icons';
import { emojiLocales, emojiPreset, emojiPresets } from '../../lib/data/emoji_presets';
import { emojiSource } from '../../lib/data/emoji_source';
import { splitEmoji } from '../../lib/data/emoji_split';
import { evaluateEmoji } from '../../lib/eval/emoji';

let folder = '';
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'siglip2-emoji-'));
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

describe('the emoji packages', () => {
  const all = readEmoji();

  test('1,592 emoji are drawn in all complete styles', () => {
    expect(all.length).toBe(1592);
    expect(new Set(all.map(({ key }) => key)).size).toBe(1592);
    const counts = emojiGroups.map((group) => all.filter((one) => one.group === group).length);
    expect(counts).toEqual([168, 342, 158, 130, 218, 85, 261, 223, 7]);
    expect(new Set(all.map(({ subgroup }) => subgroup)).size).toBe(95);
    expect(all.some(({ key }) => key.includes('fe0f') || key === '1f4e6')).toBe(false);
  });

  test('complete styles draw all of them, partial ones those whose Unicode name they have', () => {
    const counts = new Map(
      [...completeStyles, ...partialStyles].map((style) => [style, drawnRows(all, style).length]),
    );
    expect(Object.fromEntries(counts)).toEqual({
      noto: 1592,
      twemoji: 1592,
      openmoji: 1592,
      'fluent-emoji-flat': 1592,
      'noto-v1': 1172,
      emojione: 1049,
      'emojione-v1': 895,
      fxemoji: 464,
      'streamline-emojis': 360,
    });
    const iconOf = (style: (typeof partialStyles)[number], character: string) =>
      iconNames(style).get(all.find((one) => one.character === character)?.key ?? '');
    expect(iconOf('fxemoji', '🍇')).toBe('grapes');
    expect(iconOf('fxemoji', '⏰')).toBe('alarmclock'); // Unicode: alarm clock
    expect(iconOf('emojione', '🐻')).toBe('bear-face'); // through the alias bear
    expect(iconOf('emojione', '🫠')).toBeUndefined(); // of 2021
    for (const style of partialStyles) {
      const { icons } = readIconSet(style);
      const names = [...iconNames(style).values()];
      expect(names.filter((name) => icons[name] === undefined)).toEqual([]);
      expect(new Set(names).size).toBe(names.length); // no drawing stands for two emoji
    }
  });

  test('gender, direction and clocks make families', () => {
    const family = (character: string): string | undefined =>
      all.find((one) => one.character === character)?.family;
    expect(family('👩‍🌾')).toBe(family('🧑‍🌾'));
    expect(family('👨‍🌾')).toBe(family('🧑‍🌾'));
    expect(family('🏃‍♀️‍➡️') ?? family('🏃')).toBe(family('🏃'));
    expect(family('👸')).toBe(family('🤴'));
    expect(family('🐈‍⬛')).toBe(family('🐈'));
    expect(family('🐈')).not.toBe(family('🐕'));
    expect(all.filter((one) => one.family === 'clock').length).toBe(29);
    expect(new Set(all.map((one) => one.family)).size).toBeLessThan(1450);
  });

  test('a split keeps families together and every subgroup on both sides in proportion', () => {
    const foodAndAnimals = readEmoji({ groups: ['Animals & Nature', 'Food & Drink'] });
    const { train, heldOut } = splitEmoji(foodAndAnimals);
    expect([foodAndAnimals.length, train.length, heldOut.length]).toEqual([288, 259, 29]);
    const whole = splitEmoji(all);
    expect(whole.train.length + whole.heldOut.length).toBe(1592);
    expect(Math.abs(whole.heldOut.length - 159)).toBeLessThanOrEqual(2);
    const trained = new Set(whole.train.map(({ family }) => family));
    expect(whole.heldOut.some(({ family }) => trained.has(family))).toBe(false);
    expect(new Set(whole.heldOut.map(({ group }) => group)).size).toBeGreaterThanOrEqual(8);
    expect(splitEmoji(all, 0.1, 1).heldOut).not.toEqual(whole.heldOut);
    expect(splitEmoji(all)).toEqual(whole);
    expect(() => splitEmoji(all, 2)).toThrow(
      expect.objectContaining({ code: 'ERR_ARGUMENT' }) as Error,
    );
  });

  test('a hundred languages name nearly all of them', () => {
    expect(new Set(emojiLocales).size).toBe(100);
    for (const locale of emojiLocales) {
      const { names } = readEmojiNames(all, locale);
      expect(names.filter((name) => name !== undefined).length).toBeGreaterThanOrEqual(1570);
    }
  });

  test('names and keywords of one emoji', () => {
    const apple = all.filter(({ character }) => character === '🍎');
    const { names, keywords } = readEmojiNames(apple, 'de');
    expect(names).toEqual(['roter Apfel']);
    expect(keywords[0]).toContain('Apfel');
    expect(readEmojiNames(apple, 'ja').names).toEqual(['赤リンゴ']);
    for (const locale of ['xx', '../en', '']) {
      expect(() => readEmojiNames(apple, locale)).toThrow(
        expect.objectContaining({ code: 'ERR_ARGUMENT' }) as Error,
      );
    }
  });

  test('a package that is not there is named, with the command to install', () => {
    expect(() => resolveEmojiPackage('@iconify-json/none/chars.json')).toThrow(
      /^emoji: @iconify-json\/none\/chars.json must be an installed package[^]*npm install --save-dev @iconify-json\/noto /,
    );
  });

  test('every preset names locales that exist, none both trained and unseen', () => {
    for (const preset of Object.values(emojiPresets)) {
      const { near, far, ownScript } = preset.unseenLocales;
      const unseen: string[] = [...near, ...far, ...ownScript];
      for (const locale of [...preset.locales, ...unseen]) expect(emojiLocales).toContain(locale);
      expect(
        unseen.filter((locale) => (preset.locales as readonly string[]).includes(locale)),
      ).toEqual([]);
      expect(preset.trainStyles as readonly string[]).not.toContain(preset.testStyle);
    }
    expect(() => emojiPreset('toString')).toThrow(
      expect.objectContaining({ code: 'ERR_ARGUMENT' }) as Error,
    );
  });
});

/** Packages of four emoji, two of them near copies, in a folder of their own. */
function writeSmallPackages(root: string): void {
  const write = (path: string, value: unknown): void => {
    const file = join(root, 'node_modules', path);
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, JSON.stringify(value));
  };
  const emoji = [
    { codes: '1F34E', char: '🍎', name: 'red apple', fill: '#d00' },
    { codes: '1F34C', char: '🍌', name: 'banana', fill: '#dd0' },
    { codes: '1F347', char: '🍇', name: 'grapes', fill: '#609' },
    { codes: '2764 FE0F', char: '❤️', name: 'red heart', fill: '#f00' },
  ];
  const keys = ['1f34e', '1f34c', '1f347', '2764'];
  write('emoji.json/emoji.json', [
    ...emoji.map(({ codes, char, name }) => ({
      codes,
      char,
      name,
      group: 'Food & Drink',
      subgroup: 'food-fruit',
    })),
    { codes: '1F3FB', char: '🏻', name: 'light skin tone', group: 'Component', subgroup: 'skin' },
  ]);
  for (const [i, style] of completeStyles.entries()) {
    const icons = Object.fromEntries(
      emoji.map(({ fill }, j) => [
        `icon-${String(j)}`,
        j === 1
          ? { body: `<path fill="${fill}" d="M0 0h10v20h-10z"/>`, width: 10, height: 20 }
          : { body: `<circle cx="10" cy="10" r="${String(4 + i + j)}" fill="${fill}"/>` },
      ]),
    );
    const chars = Object.fromEntries(keys.map((key, j) => [key, `icon-${String(j)}`]));
    write(`@iconify-json/${style}/package.json`, { version: '1.0.0' });
    write(`@iconify-json/${style}/chars.json`, chars);
    write(`@iconify-json/${style}/icons.json`, { icons, width: 20, height: 20 });
  }
  write('@iconify-json/fxemoji/package.json', { version: '1.0.0' });
  write('@iconify-json/fxemoji/icons.json', {
    icons: {
      redapple: { body: '<path fill="#d00" d="M0 0h20v20h-20z"/>' },
      'heavy-heart': { body: '<path fill="#f00" d="M0 0h20v15h-20z"/>' },
      unnamed: { body: '' },
    },
    aliases: { 'red-heart': { parent: 'heavy-heart' } },
    width: 20,
    height: 20,
  });
  for (const kind of ['', '-derived']) {
    const inner = kind === '' ? 'annotations' : 'annotationsDerived';
    write(`cldr-annotations${kind}-full/package.json`, {});
    for (const locale of ['en', 'de', 'ja', 'ar', 'nl']) {
      const entries = emoji
        .slice(kind === '' ? 0 : 2, kind === '' ? 2 : 4)
        .filter(({ char }) => locale !== 'nl' || char !== '🍌')
        .map(({ char, name }) => [char, { default: [`${name} word`], tts: [`${name} ${locale}`] }]);
      const file = { [inner]: { annotations: Object.fromEntries(entries) as unknown } };
      write(`cldr-annotations${kind}-full/${inner}/${locale}/annotations.json`, file);
    }
  }
}

describe('drawings', () => {
  let root = '';
  let emoji: Emoji[] = [];
  let cache = '';
  beforeAll(() => {
    root = join(folder, 'small');
    cache = join(folder, 'cache');
    writeSmallPackages(root);
    emoji = readEmoji({ root });
  });

  test('are centred on a white square, in the order asked for', async () => {
    expect(emoji.map(({ key }) => key)).toEqual(['1f34e', '1f34c', '1f347', '2764']);
    const progress: number[] = [];
    const onProgress = (done: number, total: number): void => {
      expect(total).toBe(4);
      progress.push(done);
    };
    const options = { root, cache, onProgress };
    const pixels = await emojiDrawings([emoji[1], emoji[0]], 'noto', 20, options);
    expect(pixels.length).toBe(2 * 20 * 20 * 3);
    expect(progress).toEqual([1, 2, 3, 4]);
    const at = (image: number, y: number, x: number): number[] => {
      const start = ((image * 20 + y) * 20 + x) * 3;
      return [...pixels.subarray(start, start + 3)];
    };
    // The banana is 10 wide and 20 high: white at the left and the right.
    expect([at(0, 10, 2), at(0, 10, 10), at(0, 0, 10), at(0, 10, 17)]).toEqual([
      [255, 255, 255],
      [221, 221, 0],
      [221, 221, 0],
      [255, 255, 255],
    ]);
    expect([at(1, 0, 0), at(1, 10, 10)]).toEqual([
      [255, 255, 255],
      [221, 0, 0],
    ]);
    // The second time the cache serves: nothing is drawn.
    await emojiDrawings(emoji, 'noto', 20, options);
    expect(progress.length).toBe(4);
  });

  test('a damaged cache, or one of other drawings, is drawn again', async () => {
    const options = { root, cache };
    const expected = await emojiDrawings(emoji, 'openmoji', 8, options);
    const path = join(cache, 'openmoji-8.drawings');
    const good = readFileSync(path);
    const flipped = Buffer.from(good);
    flipped[flipped.length - 1] ^= 1;
    const header = Buffer.from(good);
    header[20] ^= 1;
    for (const bad of [
      flipped,
      header,
      good.subarray(0, 40),
      Buffer.alloc(0),
      Buffer.alloc(9000),
    ]) {
      writeFileSync(path, bad);
      expect(await emojiDrawings(emoji, 'openmoji', 8, options)).toEqual(expected);
      expect(readFileSync(path)).toEqual(good);
    }
    expect(readdirSync(cache).filter((name) => name.endsWith('.tmp'))).toEqual([]);
    const manifest = join(root, 'node_modules/@iconify-json/openmoji/package.json');
    writeFileSync(manifest, JSON.stringify({ version: '1.0.1' }));
    await emojiDrawings(emoji, 'openmoji', 8, options);
    expect(readFileSync(path)).not.toEqual(good);
  });

  test('wrong arguments, unknown emoji, aborts and folders that cannot be written', async () => {
    const draw = (
      ...[list, style, size, more]: Parameters<typeof emojiDrawings>
    ): Promise<unknown> => emojiDrawings(list, style, size, { root, cache, ...more });
    await expect(draw(emoji, 'ascii' as 'noto', 8)).rejects.toMatchObject({ code: 'ERR_ARGUMENT' });
    await expect(draw(emoji, 'noto', 7)).rejects.toMatchObject({ code: 'ERR_ARGUMENT' });
    const stranger = { ...emoji[0], key: '0' };
    await expect(draw([stranger], 'noto', 8)).rejects.toMatchObject({ code: 'ERR_ARGUMENT' });
    await expect(draw(emoji, 'fxemoji', 8)).rejects.toThrow(
      /of those that fxemoji draws, got 1f34c/,
    );
    const signal = AbortSignal.abort();
    await expect(draw(emoji, 'noto', 9, { signal })).rejects.toMatchObject({ code: 'ERR_ABORTED' });
    expect(existsSync(join(cache, 'noto-9.drawings'))).toBe(false);
    const blocked = join(folder, 'blocked');
    writeFileSync(blocked, '');
    await expect(draw(emoji, 'noto', 9, { cache: blocked })).rejects.toMatchObject({
      code: 'ERR_FILE',
    });
  });

  test('a blank drawing, a missing icon and a broken SVG are named', async () => {
    const path = join(root, 'node_modules/@iconify-json/twemoji/icons.json');
    const good = readFileSync(path, 'utf8');
    for (const [icons, message] of [
      [{}, /twemoji must have the icon icon-0, got none/],
      [{ 'icon-0': { body: '' } }, /twemoji\/icon-0 must not be blank/],
      [{ 'icon-0': { body: '<path' } }, /twemoji\/icon-0 must be an SVG that can be drawn/],
    ] as const) {
      writeFileSync(path, JSON.stringify({ icons }));
      const drawn = emojiDrawings(emoji, 'twemoji', 8, { root, cache, concurrency: 1 });
      await expect(drawn).rejects.toMatchObject({ code: 'ERR_IMAGE' });
      await expect(drawn).rejects.toThrow(message);
    }
    writeFileSync(path, good);
  });

  const small = {
    ...emojiPresets['animals-food'],
    name: 'small',
    groups: undefined,
    size: 8,
    heldOut: 0.25,
    trainStyles: ['noto', 'fluent-emoji-flat', 'fxemoji'] as const,
    locales: ['en', 'de'],
    unseenLocales: { near: ['nl'], far: [], ownScript: [] },
    keywordShare: 0.5,
  };

  test('a preset becomes a source of rows: drawings in training styles, names in all languages', async () => {
    const source = await emojiSource(small, { root, cache });
    const rows = [];
    for await (const row of source.rows(() => true)) rows.push(row);
    expect([source.length, rows.length]).toEqual([(3 + 3 + 1) * 2, 14]); // fxemoji draws one of the three
    const data = new EmojiData(small, { root, cache });
    for (const { id, text, image } of rows) {
      const [style, key, locale] = id.split('/') as ['noto', string, string];
      const i = data.emoji.train.findIndex((one) => one.key === key);
      expect(text).toBe(data.names(locale, 'train').texts[i]);
      const drawn = await data.images(style, 'train');
      const place = drawn.rows.indexOf(i);
      const pixels = drawn.pixels.subarray(192 * place, 192 * (place + 1));
      const bytes = image !== undefined && 'bytes' in image ? image.bytes : new Uint8Array();
      expect((await decodeImage(bytes)).data).toEqual(Buffer.from(pixels));
    }
    expect(new Set(rows.map(({ id }) => id)).size).toBe(14);
    expect(rows.map(({ id }) => id)).not.toEqual(rows.map(({ id }) => id).sort());
    const again = [];
    for await (const row of source.rows((index) => index % 5 === 0)) again.push(row);
    expect(again).toEqual(rows.filter(({ index }) => index % 5 === 0));
    expect((await emojiSource(small, { root, cache })).fingerprint).toBe(source.fingerprint);
  });

  test('a preset becomes a training table and a report', async () => {
    const data = new EmojiData(small, { root, cache });
    expect([data.emoji.train.length, data.emoji.heldOut.length]).toEqual([3, 1]);
    const table = await data.trainingTable((texts) => new Int32Array(texts.length * 2));
    const drawn = await data.images('fxemoji', 'train'); // red apple, red heart
    const pairs = 6 + drawn.rows.length;
    expect(drawn.pixels.length).toBe(drawn.rows.length * 8 * 8 * 3);
    expect([table.concepts.length, table.pixels.length]).toEqual([pairs, pairs * 8 * 8 * 3]);
    expect([...table.concepts]).toEqual([0, 1, 2, 0, 1, 2, ...drawn.rows]);
    expect(table.texts.length).toBe(3 * 3); // two names and one keyword, equal in both languages
    expect(data.texts()).toEqual(expect.arrayContaining([...table.texts]));
    // A model that knows everything: an emoji's embedding is its row.
    const names = [...data.emoji.train, ...data.emoji.heldOut].map(({ name }) => name);
    const bytes = 8 * 8 * 3;
    const drawings = (pixels: Uint8Array): string[] =>
      Array.from({ length: pixels.length / bytes }, (_, i) =>
        Buffer.from(pixels.subarray(i * bytes, (i + 1) * bytes)).toString('latin1'),
      );
    const shown = new Map<string, number>();
    for (const style of [data.preset.testStyle, ...data.preset.trainStyles]) {
      for (const part of ['train', 'heldOut'] as const) {
        const { rows, pixels } = await data.images(style, part);
        for (const [i, drawing] of drawings(pixels).entries()) {
          shown.set(drawing, names.indexOf(data.emoji[part][rows[i]].name));
        }
      }
    }
    const point = (list: readonly number[]): { data: Float32Array; width: number } => {
      const embeddings = new Float32Array(list.length * 4);
      for (const [i, row] of list.entries()) embeddings[i * 4 + row] = 1;
      return { data: embeddings, width: 4 };
    };
    const report = await evaluateEmoji(data, {
      images: (pixels) =>
        Promise.resolve(point(drawings(pixels).map((drawing) => shown.get(drawing) ?? NaN))),
      texts: (texts) =>
        Promise.resolve(
          point(texts.map((text) => names.indexOf(text.slice(0, text.lastIndexOf(' '))))),
        ),
    });
    const parts = drawn.rows.length === 2 ? 4 + 3 : 4 + 4; // where fxemoji draws nothing is no task
    expect(report.tasks.length).toBe(parts * 2);
    expect(report.tasks.find(({ style }) => style === 'fxemoji')?.classes).toBe(3);
    expect(report.tasks.every(({ top1 }) => top1.value === 1)).toBe(true);
    const unseen = report.tasks.find(({ seenStyle, part }) => !seenStyle && part === 'train');
    expect([unseen?.style, unseen?.classes, unseen?.chance]).toEqual(['twemoji', 3, 1 / 3]);
    expect(report.retrieval.map(({ locale }) => locale)).toEqual(['en', 'de']);
    expect(report.retrievalAllStyles.imageToText.at1.total).toBe(pairs);
    expect(report.retrievalAllStyles.textToImage.at1.value).toBe(1);
    expect(report.confusions).toEqual([]);
    expect(report.pixels.top1.total).toBe(3);
  });
});

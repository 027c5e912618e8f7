// The table of rooms, held by reading the import lines: a file imports only from rooms above its own.
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { basename, dirname, join, relative, resolve, sep } from 'node:path';

const ROOT = resolve(__dirname, '..');

/** From the ground up; rooms of one line do not know each other. */
const ROOMS: readonly (readonly string[])[] = [
  ['errors'],
  ['native'],
  ['array'],
  ['comm'],
  ['graph'],
  ['ops'],
  ['nn'],
  ['model'],
  ['loss', 'plan'],
  ['weights'],
  ['image', 'text', 'corpus'],
  ['data'],
  ['train'],
  ['eval'],
  ['embed'],
  ['bulk'],
  ['serve', 'integrations'],
  ['cli'],
  ['index', 'kernels', 'training'],
];

const FORBIDDEN_ROOMS = ['utils', 'util', 'common', 'core', 'helpers', 'misc'];

function filesBelow(folder: string, extensions: readonly string[]): string[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((file) => extensions.some((extension) => file.endsWith(extension)))
    .map((file) => join(folder, file))
    .sort();
}

function shown(file: string): string {
  return relative(ROOT, file).split(sep).join('/');
}

/** Every module specifier of import, export … from, and require; without types on request. */
function importsOf(file: string, types = true): string[] {
  const text = readFileSync(file, 'utf8');
  const source = types ? text : text.replace(/^\s*(?:import|export)\s+type\b[^;]*;/gm, '');
  const patterns = [
    /^\s*(?:import|export)\b[^'"`;]*?\bfrom\s*'([^']+)'/gm,
    /^\s*import\s*'([^']+)'/gm,
    /\b(?:require|import)\(\s*'([^']+)'\s*\)/g,
  ];
  return patterns.flatMap((pattern) => [...source.matchAll(pattern)].map((match) => match[1]));
}

/** The file that a relative specifier names. */
function targetOf(file: string, specifier: string): string | undefined {
  if (!specifier.startsWith('.')) return undefined;
  const path = resolve(dirname(file), specifier);
  return [`${path}.ts`, join(path, 'index.ts'), path].find((candidate) => existsSync(candidate));
}

function roomOf(file: string): string {
  const [room] = relative(join(ROOT, 'lib'), file).split(sep);
  return basename(room, '.ts');
}

function levelOf(room: string): number {
  return ROOMS.findIndex((line) => line.includes(room));
}

const library = filesBelow(join(ROOT, 'lib'), ['.ts']);
const sources = filesBelow(join(ROOT, 'native'), ['.h', '.cc', '.cu', '.cuh']);

describe('lib', () => {
  test('every file is in a known room', () => {
    const unknown = library.filter((file) => levelOf(roomOf(file)) < 0).map(shown);
    expect(unknown).toEqual([]);
  });

  test('every file imports only from rooms above its own', () => {
    const wrong = library.flatMap((file) =>
      importsOf(file).flatMap((specifier) => {
        const target = targetOf(file, specifier);
        if (target === undefined) return [];
        const inside = relative(join(ROOT, 'lib'), target);
        if (inside.startsWith('..')) return [`${shown(file)} leaves lib: ${specifier}`];
        const [from, to] = [roomOf(file), roomOf(target)];
        const allowed = from === to || levelOf(to) < levelOf(from);
        return allowed ? [] : [`${shown(file)} imports ${shown(target)}`];
      }),
    );
    expect(wrong).toEqual([]);
  });

  test('operations do not import each other', () => {
    const folder = join(ROOT, 'lib', 'ops');
    const wrong = library
      .filter((file) => dirname(file) === folder && basename(file) !== 'index.ts')
      .flatMap((file) =>
        importsOf(file)
          .filter((specifier) => specifier.startsWith('./'))
          .map((specifier) => `${shown(file)} imports ${specifier}`),
      );
    expect(wrong).toEqual([]);
  });

  // Types may refer to each other both ways; what is loaded may not.
  test('has no import cycle', () => {
    const edges = new Map(
      library.map((file) => [
        file,
        importsOf(file, false).flatMap((specifier) => targetOf(file, specifier) ?? []),
      ]),
    );
    const done = new Set<string>();
    const path: string[] = [];
    const cycles: string[] = [];
    const visit = (file: string): void => {
      if (path.includes(file)) {
        cycles.push([...path.slice(path.indexOf(file)), file].map(shown).join(' > '));
        return;
      }
      if (done.has(file)) return;
      path.push(file);
      (edges.get(file) ?? []).forEach(visit);
      path.pop();
      done.add(file);
    };
    library.forEach(visit);
    expect(cycles).toEqual([]);
  });

  test('only lib/native knows the addon', () => {
    const wrong = library
      .filter((file) => roomOf(file) !== 'native')
      .filter((file) => /\.node'|\brequire\(/.test(readFileSync(file, 'utf8')))
      .map(shown);
    expect(wrong).toEqual([]);
  });

  test('has no room for leftovers', () => {
    const wrong = [...library, ...sources]
      .map(shown)
      .filter((file) => file.split('/').some((part) => FORBIDDEN_ROOMS.includes(part)));
    expect(wrong).toEqual([]);
  });

  test('file names are snake_case', () => {
    const wrong = [...library, ...sources].filter(
      (file) => !/^[a-z0-9]+(_[a-z0-9]+)*\.(ts|h|cc|cu|cuh)$/.test(basename(file)),
    );
    expect(wrong.map(shown)).toEqual([]);
  });
});

/** What a quoted include line names, from native/ on. */
function includesOf(file: string): string[] {
  const source = readFileSync(file, 'utf8');
  return [...source.matchAll(/^\s*#include\s*"([^"]+)"/gm)].map((match) => match[1]);
}

/** Rooms of native/ that a room may include, besides itself. */
const NATIVE_ROOMS: Readonly<Record<string, readonly string[]>> = {
  runtime: [],
  cpu: ['runtime'],
  device: [],
  cuda: ['runtime', 'device'],
  ops: ['runtime', 'cpu', 'device', 'cuda'],
  image: ['runtime', 'cpu', 'device', 'cuda'],
  comm: ['runtime'],
  binding: ['runtime', 'cpu', 'ops', 'image', 'comm'],
};

describe('native', () => {
  const roomOfSource = (file: string): string => relative(join(ROOT, 'native'), file).split(sep)[0];

  test('every file includes only what its room may know', () => {
    const wrong = sources.flatMap((file) => {
      const room = roomOfSource(file);
      const allowed = NATIVE_ROOMS[room] ?? [];
      return includesOf(file)
        .filter((include) => existsSync(join(ROOT, 'native', include)))
        .filter((include) => ![room, ...allowed].includes(include.split('/')[0]))
        .map((include) => `${shown(file)} includes ${include}`);
    });
    expect(wrong).toEqual([]);
  });

  test('operations include no header of another', () => {
    const wrong = sources
      .filter((file) => roomOfSource(file) === 'ops')
      .flatMap((file) => {
        const own = `ops/${basename(dirname(file))}/`;
        return includesOf(file)
          .filter((include) => include.startsWith('ops/') && !include.startsWith(own))
          .map((include) => `${shown(file)} includes ${include}`);
      });
    expect(wrong).toEqual([]);
  });

  test('only the binding knows Node-API', () => {
    const wrong = sources
      .filter((file) => roomOfSource(file) !== 'binding')
      .filter((file) =>
        /#include\s*[<"](napi|node_api|uv|v8|node)\b/.test(readFileSync(file, 'utf8')),
      );
    expect(wrong.map(shown)).toEqual([]);
  });
});

describe('one word names a concept', () => {
  const stems = (folder: string, extension: string): string[] =>
    filesBelow(join(ROOT, folder), [extension]).map((file) => basename(file, extension));

  test('every native operation has its contract and its CPU source', () => {
    const folder = join(ROOT, 'native', 'ops');
    for (const op of readdirSync(folder)) {
      expect(readdirSync(join(folder, op))).toEqual(expect.arrayContaining([`${op}.h`, 'cpu.cc']));
    }
  });

  test('every operation of lib has its test', () => {
    const tests = stems('test/ops', '.test.ts');
    const missing = stems('lib/ops', '.ts').filter((op) => op !== 'index' && !tests.includes(op));
    expect(missing).toEqual([]);
  });
});

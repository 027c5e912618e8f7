import { join } from 'node:path';
import { expandBraces, expandPattern, matcher } from '../../lib/corpus/pattern';
import { failure } from '../failure';
import { folderForAll, put } from './corpus_files';

test.each([
  ['a.tar', ['a.tar']],
  ['a-{08..11}.tar', ['a-08.tar', 'a-09.tar', 'a-10.tar', 'a-11.tar']],
  ['{2..0}', ['2', '1', '0']],
  ['{a,b}/{0..1}', ['a/0', 'a/1', 'b/0', 'b/1']],
  ['x{a,b{1..2}}', ['xa', 'xb1', 'xb2']],
  ['{only}', ['{only}']],
  ['open{', ['open{']],
  ['', ['']],
])('braces of %j', (pattern, names) => {
  expect(expandBraces(pattern)).toEqual(names);
});

test('a slip of the keyboard is no list of a billion names', () => {
  expect(() => expandBraces('{0..999999999}')).toThrow(/at most 1000000 names/);
  expect(() => expandBraces('{0..9999}{0..9999}')).toThrow(/at most 1000000 names/);
});

test.each([
  ['*.jpg', 'a/b/c.jpg', true],
  ['*.jpg', 'c.jpeg', false],
  ['a/*.jpg', 'a/b/c.jpg', false],
  ['a/**/*.jpg', 'a/b/c.jpg', true],
  ['a/**/*.jpg', 'a/c.jpg', true],
  ['**', 'a/b', true],
  ['[a-c]?.png', 'bx.png', true],
  ['[!a-c]?.png', 'bx.png', false],
  ['*.{jpg,png}', 'x/y.png', true],
  ['a+(b).png', 'a+(b).png', true],
])('%s against %s: %s', (pattern, path, expected) => {
  expect(matcher(pattern)(path)).toBe(expected);
});

describe('on a disk', () => {
  const folder = folderForAll();

  test('wild cards give what exists, braces give what is written', async () => {
    for (const name of ['b.tar', 'a.tar', 'below/c.tar', 'odd[1].tar', 'a.txt']) {
      put(join(folder(), name), '');
    }
    const found = (pattern: string): Promise<string[]> => expandPattern(join(folder(), pattern));
    expect(await found('*.tar')).toEqual(
      ['a.tar', 'b.tar', 'odd[1].tar'].map((name) => join(folder(), name)),
    );
    expect(await found('**/*.tar')).toContain(join(folder(), 'below/c.tar'));
    expect(await found('{z,a}.tar')).toEqual(['z.tar', 'a.tar'].map((n) => join(folder(), n)));
    // A file that is called like a pattern is meant.
    expect(await found('odd[1].tar')).toEqual([join(folder(), 'odd[1].tar')]);
    expect(await failure(found('*.zip'))).toMatchObject({ code: 'ERR_FILE' });
  });
});

import { AddedTokenMatcher } from '../../lib/text/added_tokens';

const tokens = ['<a>', '<ab', '\n', '\n\n', '\n\n\n', '▁▁'].map((content, id) => ({
  id,
  content,
  special: false,
}));

function split(text: string): (string | number)[] {
  return [...new AddedTokenMatcher(tokens).split(text)];
}

test.each<[string, (string | number)[]]>([
  ['', []],
  ['plain', ['plain']],
  ['x<a>y', ['x', 0, 'y']],
  ['<a><a>', [0, 0]],
  ['<ab>', [1, '>']],
  ['<<a>', ['<', 0]],
  ['\n\n\n\n\n', [4, 3]],
  ['▁ ▁▁', ['▁ ', 5]],
  ['<', ['<']],
])('%j', (text, expected) => {
  expect(split(text)).toEqual(expected);
});

test('without tokens a text is one piece', () => {
  expect([...new AddedTokenMatcher([]).split('a\nb')]).toEqual(['a\nb']);
});

test('an empty token is refused', () => {
  expect(() => new AddedTokenMatcher([{ id: 7, content: '', special: true }])).toThrow(
    'added token 7 must have content, got an empty string',
  );
});

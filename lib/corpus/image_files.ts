// The image files that a path stands for: itself, or those in and below it.
import { readdir, stat } from 'node:fs/promises';
import { extname, join } from 'node:path';
import { SiglipError } from '../errors';
import { unreadable } from '../weights/file_errors';
import { compare, matcher } from './pattern';

/** Which files below a folder are taken. */
export interface FileChoice {
  /** Patterns that files below a folder must match; default: the usual image extensions. */
  readonly include?: readonly string[];
  /** Patterns that files below a folder must not match. */
  readonly exclude?: readonly string[];
}

const IMAGE_EXTENSIONS = new Set([
  '.avif',
  '.gif',
  '.jpeg',
  '.jpg',
  '.png',
  '.svg',
  '.tif',
  '.tiff',
  '.webp',
]);

/**
 * A file as it is; for a folder the images in and below it, sorted by path.
 *
 * @throws SiglipError ERR_FILE for a path that does not exist or cannot be read
 */
export async function imageFiles(path: string, choice: FileChoice = {}): Promise<string[]> {
  const found = await stat(path).catch((cause: unknown) => {
    throw new SiglipError(
      'ERR_FILE',
      `images: ${path} must be a file or a folder, got nothing there`,
      { cause },
    );
  });
  if (!found.isDirectory()) return [path];
  const admitted = admission(choice);
  const files: string[] = [];
  const visit = async (folder: string, prefix: string): Promise<void> => {
    const entries = await readdir(folder, { withFileTypes: true }).catch((error: unknown) => {
      throw unreadable(folder, error);
    });
    for (const entry of entries) {
      const name = prefix + entry.name;
      // Links to folders are not followed: they may lead in a circle.
      if (entry.isDirectory()) await visit(join(folder, entry.name), `${name}/`);
      else if ((entry.isFile() || entry.isSymbolicLink()) && admitted(name)) files.push(name);
    }
  };
  await visit(path, '');
  return files.sort(compare).map((name) => join(path, name));
}

function admission({ include = [], exclude = [] }: FileChoice): (name: string) => boolean {
  const included = include.map(matcher);
  const excluded = exclude.map(matcher);
  return (name) => {
    if (excluded.some((matches) => matches(name))) return false;
    if (included.length > 0) return included.some((matches) => matches(name));
    return IMAGE_EXTENSIONS.has(extname(name).toLowerCase());
  };
}

// Arguments that name image files or folders of them.
import { readdir, stat } from 'node:fs/promises';
import { extname, join } from 'node:path';
import { SiglipError } from '../errors';

const imageExtensions = new Set([
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
 * Files as they are, folders replaced by the images in and below them, sorted by path.
 *
 * @throws ERR_FILE for a path that does not exist.
 */
export async function inputFiles(paths: readonly string[]): Promise<string[]> {
  const found = await Promise.all(paths.map(below));
  return found.flat();
}

async function below(path: string): Promise<string[]> {
  let isFolder: boolean;
  try {
    isFolder = (await stat(path)).isDirectory();
  } catch (cause) {
    throw new SiglipError(
      'ERR_FILE',
      `images: ${path} must be a file or a folder, got nothing there`,
      {
        cause,
      },
    );
  }
  if (!isFolder) return [path];
  const entries = await readdir(path, { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile() && imageExtensions.has(extname(entry.name).toLowerCase()))
    .map((entry) => join(entry.parentPath, entry.name))
    .sort();
}

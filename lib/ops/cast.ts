// Another dtype for the same values. Defined by the graph, which needs it for programs of another
// precision.
export { cast } from '../graph';

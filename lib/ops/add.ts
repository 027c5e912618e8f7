// Element-wise sum. Defined by the graph, which needs it to sum gradients.
export { add } from '../graph';

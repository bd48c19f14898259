"""Mistakes that people make in the labs: by lab, one row per exercise. Each has to be found, with a hint that helps."""

from tests.notebooks.exercises import WrongAnswer

LAB_1 = (
    (
        WrongAnswer(
            "the same weights",
            "def same_probabilities(W, b):\n    return W, b",
            "these are the same weights",
        ),
        WrongAnswer(
            "weights that are scaled",
            "def same_probabilities(W, b):\n    return 2 * W, 2 * b",
            "must change by the same number",
        ),
        WrongAnswer(
            "a change in one row only",
            "def same_probabilities(W, b):\n    W[0] += 1\n    return W, b",
            "must change by the same number",
        ),
        WrongAnswer(
            "one result instead of two",
            "def same_probabilities(W, b):\n    return W + 1",
            "your answer raised ValueError",
        ),
    ),
    (
        WrongAnswer(
            "the temperature forgotten",
            "def gradient_with_temperature(P, y, T):\n    return (P - np.eye(P.shape[1])[y]) / len(y)",
            "1/T is missing",
        ),
        WrongAnswer(
            "the mean forgotten",
            "def gradient_with_temperature(P, y, T):\n    return (P - np.eye(P.shape[1])[y]) / T",
            "1/n is missing",
        ),
        WrongAnswer(
            "the sign",
            "def gradient_with_temperature(P, y, T):\n    return (np.eye(P.shape[1])[y] - P) / (len(y) * T)",
            "the sign is wrong",
        ),
        WrongAnswer(
            "multiplied by the temperature",
            "def gradient_with_temperature(P, y, T):\n    return (P - np.eye(P.shape[1])[y]) * T / len(y)",
            "the largest difference",
        ),
        WrongAnswer(
            "a sum over the batch",
            "def gradient_with_temperature(P, y, T):\n    return ((P - np.eye(P.shape[1])[y]) / T).mean(axis=0)",
            "the shape (3,): expected (5, 3)",
        ),
    ),
    (
        WrongAnswer("the slope of a one-sided difference", "slope_right = 1", "slope_right = 1 is not"),
        WrongAnswer("a slope read from right to left", "slope_right, slope_left = 2, 1", "slope_left = 1 is not"),
        WrongAnswer(
            "the slope of a central difference",
            "slope_left, slope_right_one_sided = -1, 2",
            "slope_right_one_sided = 2 is not",
        ),
        WrongAnswer(
            "the best step of the central difference",
            "slope_right_one_sided, best_step_one_sided = 1, 6e-6",
            "best_step_one_sided = 6e-06 is not near",
        ),
        WrongAnswer("an answer left out", "best_step_one_sided = ...", "○ Exercise 3: not answered yet"),
    ),
    (
        WrongAnswer(
            "the factor 2 forgotten",
            "def squared_error_backward(P, y):\n    return (P - np.eye(P.shape[1])[y]) / len(y)",
            "the factor 2 is missing",
        ),
        WrongAnswer(
            "the mean forgotten",
            "def squared_error_backward(P, y):\n    return 2 * (P - np.eye(P.shape[1])[y])",
            "1/n is missing",
        ),
        WrongAnswer(
            "the derivative of the NLL",
            "squared_error_backward = nll_backward",
            "the largest difference from the measured gradient",
        ),
    ),
    (
        WrongAnswer("four different units", "different_units = 4", "4 is not right: compare the gradients"),
        WrongAnswer(
            "zeros that change",
            "different_units, changes_from_zero = 1, True",
            "True is not right: dW contains h",
        ),
    ),
    (
        WrongAnswer(
            "the mean and deviation of the rows that are passed",
            "def normalised(X):\n    return (X - X.mean()) / X.std()",
            "use the mean and deviation of X_train",
        ),
        WrongAnswer(
            "a mean and a deviation per pixel",
            "def normalised(X):\n    return (X - X_train.mean(axis=0)) / (X_train.std(axis=0) + 1e-6)",
            "with one mean and one deviation",
        ),
        WrongAnswer(
            "the rate of the original pixels",
            "def normalised(X):\n    return (X - mean) / deviation\n\n\nbetter_rate = 0.5",
            "the rate 0.5 has the larger development loss",
        ),
    ),
    (
        WrongAnswer(
            "twice the decay",
            "def loss_and_gradients_with_decay(X, y, W, b, decay):\n"
            "    loss, dW, db = loss_and_gradients(X, y, W, b)\n"
            "    return loss + decay / 2 * (W**2).sum(), dW + 2 * decay * W, db",
            "dW has twice too much",
        ),
        WrongAnswer(
            "half of the decay",
            "def loss_and_gradients_with_decay(X, y, W, b, decay):\n"
            "    loss, dW, db = loss_and_gradients(X, y, W, b)\n"
            "    return loss + decay / 2 * (W**2).sum(), dW + decay / 2 * W, db",
            "dW has half too little",
        ),
        WrongAnswer(
            "the penalty forgotten in the loss",
            "def loss_and_gradients_with_decay(X, y, W, b, decay):\n"
            "    loss, dW, db = loss_and_gradients(X, y, W, b)\n"
            "    return loss, dW + decay * W, db",
            "add decay/2 times the sum of W²",
        ),
        WrongAnswer(
            "biases that decay too",
            "def loss_and_gradients_with_decay(X, y, W, b, decay):\n"
            "    loss, dW, db = loss_and_gradients(X, y, W, b)\n"
            "    return loss + decay / 2 * (W**2).sum(), dW + decay * W, db + decay * b",
            "db must stay as it is",
        ),
    ),
    (
        WrongAnswer(
            "no biases",
            "def nearest_mean(X, y):\n"
            "    return np.stack([X[y == digit].mean(axis=0) for digit in range(10)]), np.zeros(10)",
            "get the class of the nearest mean",
        ),
        WrongAnswer(
            "the ½ forgotten",
            "def nearest_mean(X, y):\n"
            "    means = np.stack([X[y == digit].mean(axis=0) for digit in range(10)])\n"
            "    return means, -((means**2).sum(axis=1))",
            "get the class of the nearest mean",
        ),
        WrongAnswer(
            "means as columns",
            "def nearest_mean(X, y):\n"
            "    means = np.stack([X[y == digit].mean(axis=0) for digit in range(10)])\n"
            "    return means.T, -0.5 * (means**2).sum(axis=1)",
            "expected (10, 784) and (10,)",
        ),
    ),
)

LAB_2 = (
    (
        WrongAnswer(
            "each node walked once",
            "def backward_by_paths(node, gradient, seen=None):\n"
            "    seen, calls = set() if seen is None else seen, 1\n"
            "    for parent, derivative in zip(node.parents, node.derivatives):\n"
            "        parent.grad = parent.grad + derivative(gradient)\n"
            "        if parent not in seen:\n"
            "            seen.add(parent)\n"
            "            calls += backward_by_paths(parent, derivative(gradient), seen)\n"
            "    return calls",
            "2 calls in a chain of length 1: expected 3",
        ),
        WrongAnswer(
            "gradients replaced instead of added",
            "def backward_by_paths(node, gradient):\n"
            "    calls = 1\n"
            "    for parent, derivative in zip(node.parents, node.derivatives):\n"
            "        parent.grad = derivative(gradient)\n"
            "        calls += backward_by_paths(parent, derivative(gradient))\n"
            "    return calls",
            "expected 2, one per path",
        ),
        WrongAnswer(
            "the calls of the parents not counted",
            "def backward_by_paths(node, gradient):\n"
            "    for parent, derivative in zip(node.parents, node.derivatives):\n"
            "        parent.grad = parent.grad + derivative(gradient)\n"
            "        backward_by_paths(parent, derivative(gradient))\n"
            "    return 1 + len(node.parents)",
            "this call included",
        ),
    ),
    (
        WrongAnswer(
            "recursion",
            "def topological_order_by_counting(root):\n    return topological_order(root)",
            "a long chain is too deep for Python",
        ),
        WrongAnswer(
            "breadth first",
            "def topological_order_by_counting(root):\n"
            "    order, queue = [], [root]\n"
            "    while queue:\n"
            "        node = queue.pop(0)\n"
            "        if node not in order:\n"
            "            order.append(node)\n"
            "            queue.extend(node.parents)\n"
            "    return order",
            "a node is before one that was computed from it",
        ),
        WrongAnswer(
            "two uses by one node passed on once",
            "def topological_order_by_counting(root):\n"
            "    waiting, stack = {root: 0}, [root]\n"
            "    while stack:\n"
            "        for parent in stack.pop().parents:\n"
            "            if parent not in waiting:\n"
            "                waiting[parent] = 0\n"
            "                stack.append(parent)\n"
            "            waiting[parent] += 1\n"
            "    order, ready = [], [root]\n"
            "    while ready:\n"
            "        order.append(ready.pop())\n"
            "        for parent in set(order[-1].parents):\n"
            "            waiting[parent] -= 1\n"
            "            if waiting[parent] == 0:\n"
            "                ready.append(parent)\n"
            "    return order",
            "In x·x, x has two uses",
        ),
        WrongAnswer(
            "nodes once for each use",
            "def topological_order_by_counting(root):\n"
            "    order, queue = [], [root]\n"
            "    while queue:\n"
            "        order.append(queue.pop(0))\n"
            "        queue.extend(order[-1].parents)\n"
            "    return order",
            "more than once",
        ),
    ),
    (
        WrongAnswer(
            "an array instead of a Mini",
            "def relu(a):\n    return np.maximum(a.data, 0)",
            "relu returns a ndarray: expected a Mini",
        ),
        WrongAnswer(
            "the derivative of the identity",
            'def relu(a):\n    return Mini(np.maximum(a.data, 0), "relu", (a,), (lambda g: g,))',
            "the derivative of relu is wrong",
        ),
        WrongAnswer(
            "the absolute value",
            'def relu(a):\n    return Mini(np.abs(a.data), "relu", (a,), (lambda g: g * np.sign(a.data),))',
            "relu of [-2.  -0.5  0.5  2. ] is",
        ),
        WrongAnswer(
            "a tanh that is right",
            "def relu(a):\n"
            '    return Mini(np.maximum(a.data, 0), "relu", (a,), (lambda g: g * (a.data > 0),))\n\n\n'
            "wrong_tanh = tanh",
            "the derivative of wrong_tanh at",
        ),
        WrongAnswer("relu twice", "wrong_tanh = relu", "the value of wrong_tanh must be that of tanh"),
    ),
    (
        WrongAnswer(
            "a tanh after the last layer",
            "def gradients_by_the_library(points, classes, layers):\n"
            "    tensors = [[Tensor(p.data, requires_grad=True) for p in layer] for layer in layers]\n"
            "    x = Tensor(points)\n"
            "    for W, b in tensors:\n"
            "        x = F.tanh(x @ W + b)\n"
            "    F.cross_entropy(x, classes).backward()\n"
            "    return [tensor.grad for layer in tensors for tensor in layer]",
            "is there a tanh after the last layer?",
        ),
        WrongAnswer(
            "weights without a gradient",
            "def gradients_by_the_library(points, classes, layers):\n"
            "    return [Tensor(p.data).grad for layer in layers for p in layer]",
            "W1 has no gradient",
        ),
        WrongAnswer(
            "weights without biases",
            "def gradients_by_the_library(points, classes, layers):\n    return [W.grad for W, b in layers]",
            "3 gradients: expected six",
        ),
    ),
)

LAB_3 = (
    (
        WrongAnswer("64 different units", "different_units = 64", "64 is not right: do equal units ever"),
        WrongAnswer(
            "every weight the same",
            "different_units = 1\n\n\ndef kaiming(n_out, n_in, rng):\n"
            "    return np.full((n_out, n_in), np.sqrt(2 / n_in))",
            "all rows are equal",
        ),
        WrongAnswer(
            "the number of outputs",
            "def kaiming(n_out, n_in, rng):\n    return rng.normal(0, np.sqrt(2 / n_out), size=(n_out, n_in))",
            "the root of 2 / n_in",
        ),
        WrongAnswer(
            "the variance as the deviation",
            "def kaiming(n_out, n_in, rng):\n    return rng.normal(0, 2 / n_in, size=(n_out, n_in))",
            "the root of 2 / n_in",
        ),
        WrongAnswer(
            "inputs before outputs",
            "def kaiming(n_out, n_in, rng):\n    return rng.normal(0, np.sqrt(2 / n_in), size=(n_in, n_out))",
            "expected (n_out, n_in)",
        ),
    ),
    (
        WrongAnswer(
            "a rate that does not stop growing",
            "def rate_at(step, peak):\n    return peak * step / 100",
            "rate_at(249, 0.4) is 0.996: expected 0.400",
        ),
        WrongAnswer(
            "no warm-up", "def rate_at(step, peak):\n    return peak", "rate_at(0, 0.4) is 0.400: expected 0.000"
        ),
        WrongAnswer(
            "a warm-up for any rate",
            "def rate_at(step, peak):\n    return peak * min(1, step / 100)\n\n\nlearns_with_half = True",
            "peak 0.5: True is not what 250 steps show",
        ),
    ),
    (
        WrongAnswer(
            "the square forgotten", "def best_momentum(product):\n    return 1 - np.sqrt(product)", "shrinks by"
        ),
        WrongAnswer("the root forgotten", "def best_momentum(product):\n    return (1 - product) ** 2", "shrinks by"),
        WrongAnswer(
            "the other root", "def best_momentum(product):\n    return (1 + np.sqrt(product)) ** 2", "from 0 to 1"
        ),
    ),
    (
        WrongAnswer(
            "a permutation per image",
            "def shuffled(images):\n"
            "    rng = np.random.default_rng(7)\n"
            "    return np.stack([rng.permutation(image.ravel()).reshape(1, 28, 28) for image in images])",
            "two images have different permutations",
        ),
        WrongAnswer(
            "another permutation in each call",
            "def shuffled(images):\n"
            "    permutation = np.random.default_rng().permutation(784)\n"
            "    return images.reshape(-1, 784)[:, permutation].reshape(-1, 1, 28, 28)",
            "fix the seed",
        ),
        WrongAnswer(
            "images shuffled instead of pixels",
            "def shuffled(images):\n    return images[::-1]",
            "some pixels are lost or change images",
        ),
        WrongAnswer(
            "rows instead of images",
            "def shuffled(images):\n    return images.reshape(-1, 784)[:, np.random.default_rng(7).permutation(784)]",
            "expected that of the images",
        ),
        WrongAnswer(
            "both nets",
            "def shuffled(images):\n"
            "    permutation = np.random.default_rng(7).permutation(784)\n"
            "    return images.reshape(-1, 784)[:, permutation].reshape(-1, 1, 28, 28)\n\n\n"
            'loses_accuracy = "both"',
            "'both' is not what 100 steps of each show",
        ),
    ),
)

LAB_4 = (
    (
        WrongAnswer(
            "the division by two forgotten",
            "def factors_in_mean_of_means(n1, n2):\n    return 1 / n1, 1 / n2",
            "off the mean of means: it divides twice",
        ),
        WrongAnswer(
            "the right factors in the wrong place",
            "def factors_in_mean_of_means(n1, n2):\n    return 1 / (n1 + n2), 1 / (n1 + n2)",
            "off the mean of means",
        ),
        WrongAnswer(
            "shares of the samples",
            "def factors_in_mean_of_means(n1, n2):\n"
            "    return 1 / (2 * n1), 1 / (2 * n2)\n\n\n"
            "def right_factors(n1, n2):\n    return n1 / (n1 + n2), n2 / (n1 + n2)",
            "off the mean over all 128 samples",
        ),
        WrongAnswer(
            "the ratio of the two sizes",
            "def right_factors(n1, n2):\n    return 1 / (n1 + n2), 1 / (n1 + n2)\n\n\ntimes_too_much = 15",
            "times_too_much = 15 is not right",
        ),
    ),
    (
        WrongAnswer(
            "one vector that is not a node",
            "def nodes_to_send(low, high, node=(0, 8)):\n    return [(low, high)]",
            "(2, 6) is not a node of the tree",
        ),
        WrongAnswer(
            "one vector per micro-batch",
            "def nodes_to_send(low, high, node=(0, 8)):\n    return [(n, n + 1) for n in range(low, high)]",
            "it can be done with 2",
        ),
        WrongAnswer(
            "from right to left",
            "def nodes_to_send(low, high, node=(0, 8)):\n"
            "    if low <= node[0] and node[1] <= high:\n"
            "        return [node]\n"
            "    if node[1] <= low or high <= node[0]:\n"
            "        return []\n"
            "    return [each for half in halves(*node)[::-1] for each in nodes_to_send(low, high, half)]",
            "from left to right",
        ),
        WrongAnswer(
            "the whole tree",
            "def nodes_to_send(low, high, node=(0, 8)):\n    return [node]",
            "expected each micro-batch once",
        ),
    ),
    (
        WrongAnswer(
            "the same bits for any number", "same_bits = True", "same_bits = True is not what the two runs show"
        ),
        WrongAnswer("work for everybody", "same_bits, idle_workers = False, 0", "idle_workers = 0"),
    ),
    (
        WrongAnswer(
            "the rest divided as well",
            "def speed_up(p, C, R):\n    return (C + R) / ((C + R) / p)",
            "only C is divided",
        ),
        WrongAnswer("the inverse", "def speed_up(p, C, R):\n    return (C / p + R) / (C + R)", "your speed-up is 0.60"),
        WrongAnswer(
            "the computing over the rest",
            "def speed_up(p, C, R):\n    return (C + R) / (C / p + R)\n\n\n"
            "def largest_speed_up(C, R):\n    return C / R",
            "for many workers speed_up is 5.0, not 4.0",
        ),
    ),
    (
        WrongAnswer(
            "divided by all samples",
            "def with_backup_workers(arrivals, p=6):\n"
            "    return sum(gradients[number] for number in arrivals[:p]) / np.float32(128)",
            "divide by 96",
        ),
        WrongAnswer(
            "nothing dropped",
            "def with_backup_workers(arrivals, p=6):\n    return sum(gradients) / np.float32(128)",
            "this is not the mean of the first six to arrive",
        ),
        WrongAnswer(
            "the first six by number",
            "def with_backup_workers(arrivals, p=6):\n    return sum(gradients[:p]) / np.float32(16 * p)",
            "this is not the mean of the first six to arrive",
        ),
        WrongAnswer(
            "added in place to a gradient that the lab uses again",
            "def with_backup_workers(arrivals, p=6):\n"
            "    total = gradients[arrivals[0]]\n"
            "    for number in arrivals[1:p]:\n"
            "        total += gradients[number]\n"
            "    return total / np.float32(16 * p)",
            "your answer raised ValueError",
        ),
        WrongAnswer(
            "both answers added",
            "def with_backup_workers(arrivals, p=6):\n"
            "    return sum(gradients[number] for number in arrivals[:p]) / np.float32(16 * p)\n\n\n"
            "def with_second_leases(arrivals):\n"
            "    return sum(gradient for _, gradient in arrivals) / np.float32(128)",
            "each micro-batch was added twice",
        ),
        WrongAnswer(
            "added in the order of arrival",
            "def with_second_leases(arrivals):\n    return sum(dict(arrivals).values()) / np.float32(128)",
            "add over the tree",
        ),
    ),
)

LAB_5 = (
    (
        WrongAnswer(
            "the state forgotten",
            "def recurrence(x, W_x, W_h, b):\n    return np.tanh(x @ W_x.T + b)",
            "what does the second one begin with",
        ),
        WrongAnswer(
            "the last state only",
            "def recurrence(x, W_x, W_h, b):\n    h = np.zeros((x.shape[1], len(b)))\n"
            "    for now in x:\n        h = np.tanh(now @ W_x.T + h @ W_h.T + b)\n    return h",
            "expected (steps, batch, states)",
        ),
        WrongAnswer(
            "states that begin at 1",
            "def recurrence(x, W_x, W_h, b):\n    h, states = np.ones((x.shape[1], len(b))), []\n"
            "    for now in x:\n        h = np.tanh(now @ W_x.T + h @ W_h.T + b)\n        states.append(h)\n"
            "    return np.stack(states)",
            "h is 0 before it",
        ),
        WrongAnswer(
            "the tanh forgotten",
            "def recurrence(x, W_x, W_h, b):\n    h, states = np.zeros((x.shape[1], len(b))), []\n"
            "    for now in x:\n        h = now @ W_x.T + h @ W_h.T + b\n        states.append(h)\n"
            "    return np.stack(states)",
            "the first step is another one",
        ),
    ),
    (
        WrongAnswer(
            "the gate in place of its bias",
            "def half_life_bias(steps):\n    return 0.5 ** (1 / steps)\nleft_after_60 = 0.5**60",
            "of the cell is left after 1 steps",
        ),
        WrongAnswer(
            "a gate of a half",
            "def half_life_bias(steps):\n    return 0.0\nleft_after_60 = 0.5**60",
            "of the cell is left after 10 steps",
        ),
        WrongAnswer(
            "one step instead of sixty",
            "def half_life_bias(steps):\n    gate = 0.5 ** (1 / steps)\n    return np.log(gate / (1 - gate))\n"
            "left_after_60 = 0.5",
            "which number is the gate",
        ),
    ),
    (
        WrongAnswer(
            "the inputs as targets",
            "def pairs(codes, length):\n    n = (len(codes) - 1) // length * length\n"
            "    x = codes[:n].reshape(-1, length)\n    return x, x",
            "the targets are the inputs",
        ),
        WrongAnswer(
            "shifted within each piece",
            "def pairs(codes, length):\n    n = (len(codes) - 1) // length * length\n"
            "    x = codes[:n].reshape(-1, length)\n    return x, np.roll(x, -1, axis=1)",
            "not one place further",
        ),
        WrongAnswer(
            "shifted into the past",
            "def pairs(codes, length):\n    n = (len(codes) - 1) // length * length\n"
            "    return codes[1 : n + 1].reshape(-1, length), codes[:n].reshape(-1, length)",
            "from the first character on",
        ),
        WrongAnswer(
            "no character left for the last target",
            "def pairs(codes, length):\n    n = len(codes) // length * length\n"
            "    return codes[:n].reshape(-1, length), np.append(codes, 0)[1 : n + 1].reshape(-1, length)",
            "which is none",
        ),
    ),
    (
        WrongAnswer(
            "multiplied by the temperature",
            "def with_temperature(logits, T):\n    e = np.exp((logits - logits.max()) * T)\n    return e / e.sum()",
            "at T = 0.5 the largest is",
        ),
        WrongAnswer(
            "the sum forgotten",
            "def with_temperature(logits, T):\n    return np.exp((logits - logits.max()) / T)",
            "divide by their sum",
        ),
        WrongAnswer(
            "large logits",
            "def with_temperature(logits, T):\n    with np.errstate(all='ignore'):\n"
            "        e = np.exp(logits / T)\n        return e / e.sum()",
            "subtract the largest one first",
        ),
    ),
)

#: By the name of the notebook.
WRONG_ANSWERS = {
    "1_linear_by_hand": LAB_1,
    "2_autograd": LAB_2,
    "3_deep_nets": LAB_3,
    "4_data_parallel": LAB_4,
    "5_sequences": LAB_5,
}
